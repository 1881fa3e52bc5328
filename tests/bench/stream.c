/* Streams samples through the C core in blocks, so that callgrind sees its calls: behind ctypes it does not, because
 * libffi moves the stack pointer.  stream TABLES SAMPLES BLOCK  (files: blob, int16 little-endian; block in samples) */
#include <stdio.h>
#include <stdlib.h>

#include "ea_frontend.h"

static uint64_t tables[1 << 17], memory[1 << 17];
static int16_t samples[1 << 20], features[1 << 16];

static size_t read_file(const char *path, void *to, size_t size)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        exit(1);
    size = fread(to, 1, size, file);
    fclose(file);
    return size;
}

int main(int argc, char **argv)
{
    ea_frontend *frontend;
    size_t size, n, i, block;
    int64_t n_frames;
    if (argc != 4)
        return 2;
    size = read_file(argv[1], tables, sizeof tables);
    n = read_file(argv[2], samples, sizeof samples) / sizeof samples[0];
    block = (size_t)atoi(argv[3]);
    if (ea_frontend_init(&frontend, tables, size, memory, sizeof memory) != EA_OK)
        return 1;
    for (i = 0; i + block <= n; i += block) {
        if (ea_frontend_process(frontend, samples + i, (int64_t)block, features, 1000, &n_frames) != EA_OK)
            return 1;
    }
    return 0;
}
