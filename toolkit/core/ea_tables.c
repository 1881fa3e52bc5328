#include "ea_tables.h"

#include <string.h>

size_t ea_fft_twiddle_words(int32_t n)
{
    size_t words = 0;
    int32_t m;
    for (m = n / 4; m > 1; m /= 4)
        words += 6 * (size_t)m;
    return words;
}

/* Returns the start of an array of `bytes` at *offset and moves *offset past it, to a multiple of 4. */
static const void *take(const uint8_t *blob, size_t *offset, size_t bytes)
{
    const void *start = blob + *offset;
    *offset += (bytes + 3) & ~(size_t)3;
    return start;
}

static int in_range(int32_t x, int32_t low, int32_t high)
{
    return low <= x && x <= high;
}

static int fields_are_sound(const ea_tables *t)
{
    return in_range(t->sample_rate_hz, 1, 384000) && in_range(t->n_fft, 16, 4096)
        && (t->n_fft & (t->n_fft - 1)) == 0 && in_range(t->win_length, 1, t->n_fft)
        && in_range(t->hop_length, 1, t->win_length) && in_range(t->n_mels, 1, 256)
        && in_range(t->n_mfcc, 0, t->n_mels) && in_range(t->spectrum, EA_SPECTRUM_MAGNITUDE, EA_SPECTRUM_POWER)
        && in_range(t->spectrum_bits, 16, 47) && in_range(t->pre_emphasis_q15, 0, 32767)
        && in_range(t->output_fraction_bits, 0, 15);
}

/* In order, inside the spectrum, and no filter so wide that its sum could leave 62 bits. */
static int segments_are_sound(const ea_tables *t)
{
    const uint16_t *start = t->mel_segment_start;
    int32_t i;
    for (i = 0; i <= t->n_mels; i++) {
        const int last = i == t->n_mels ? i + 1 : i + 2;
        if (start[i] > start[i + 1] || start[i + 1] > start[last]
            || (int64_t)(start[last] - start[i]) > (int64_t)1 << (62 - 15 - t->spectrum_bits))
            return 0;
    }
    return start[t->n_mels + 1] <= t->n_fft / 2 + 1;
}

ea_status ea_tables_map(ea_tables *tables, const void *blob, size_t size)
{
    int32_t header[EA_TABLES_HEADER_WORDS];
    ea_tables *t = tables;
    size_t offset = sizeof header;

    if (tables == NULL || blob == NULL || ((uintptr_t)blob & 3) != 0)
        return EA_BAD_ARGUMENT;
    if (size < sizeof header || size > (1u << 20))
        return EA_BAD_TABLES;
    memcpy(header, blob, sizeof header);
    if (header[0] != EA_TABLES_MAGIC || header[1] != EA_ALGORITHM || header[2] != (int32_t)size)
        return EA_BAD_TABLES;
    t->sample_rate_hz = header[3];
    t->win_length = header[4];
    t->hop_length = header[5];
    t->n_fft = header[6];
    t->n_mels = header[7];
    t->n_mfcc = header[8];
    t->spectrum = header[9];
    t->spectrum_bits = header[10];
    t->pre_emphasis_q15 = header[11];
    t->log_floor_q24 = header[12];
    t->output_fraction_bits = header[13];
    if (!fields_are_sound(t))
        return EA_BAD_TABLES;

    t->window_q15 = take(blob, &offset, 2 * (size_t)t->win_length);
    t->fft_twiddle_q30 = take(blob, &offset, 4 * ea_fft_twiddle_words(t->n_fft / 2));
    t->split_twiddle_q30 = take(blob, &offset, 8 * ((size_t)t->n_fft / 4 + 1));
    t->mel_segment_start = take(blob, &offset, 2 * ((size_t)t->n_mels + 2));
    t->mel_rise_q15 = take(blob, &offset, 2 * ((size_t)t->n_fft / 2 + 1));
    t->log_q24 = take(blob, &offset, 4 * (EA_LOG_SEGMENTS + 1));
    t->dct_q15 = take(blob, &offset, 2 * (size_t)t->n_mfcc * (size_t)t->n_mels);
    if (offset != size || !segments_are_sound(t))
        return EA_BAD_TABLES;
    return EA_OK;
}
