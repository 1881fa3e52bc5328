#include "ea_model.h"

#include <string.h>

#define MOST_TAPS (1 << 16) /* of a window */

typedef char ea_operation_is_its_words[sizeof(ea_operation) == 4 * EA_OPERATION_WORDS ? 1 : -1];

static size_t align16(size_t bytes)
{
    return (bytes + 15) & ~(size_t)15;
}

static ea_operation operation(const ea_model *model, int32_t i)
{
    ea_operation op;
    memcpy(&op, model->operations + (size_t)i * sizeof op, sizeof op);
    return op;
}

/* Bytes from the first one of rows x cols runs to the end of the last one. */
static int64_t extent(int32_t rows, int32_t row_step, int32_t cols, int32_t col_step, int64_t run)
{
    return (rows - 1) * (int64_t)row_step + (cols - 1) * (int64_t)col_step + run;
}

static int fits(int32_t offset, int64_t bytes, int32_t size)
{
    return offset + bytes <= size;
}

static int fields_are_small(const int32_t *fields, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++)
        if (fields[i] < 0 || fields[i] > EA_MODEL_LARGEST)
            return 0;
    return 1;
}

/* No negative multiplier, and shifts that are shorter than a word. */
static int rescale_is_sound(const int32_t *words, int32_t n_blocks)
{
    int32_t i, j;
    for (i = 0; i < n_blocks; i++, words += EA_RESCALE_WORDS)
        for (j = 0; j < EA_LANES; j++)
            if (words[EA_LANES + j] < 0 || (uint32_t)words[2 * EA_LANES + j] > 30
                || (uint32_t)words[3 * EA_LANES + j] > 31)
                return 0;
    return 1;
}

static int terms_are_sound(const int32_t *terms)
{
    return terms[0] == (int8_t)terms[0] && terms[3] == (int8_t)terms[3] && terms[1] >= 0 && terms[4] >= 0
        && terms[6] >= 0 && (uint32_t)terms[2] <= 31 && (uint32_t)terms[5] <= 31 && (uint32_t)terms[7] <= 31;
}

/* Does the operation read and write inside the arena (before the patch) and the constants? */
static int operation_is_sound(const ea_model *m, const ea_operation *op, int is_fill)
{
    const ea_layer *l = &op->layer;
    const int32_t n_blocks = EA_PADDED(l->channels) / EA_LANES;
    const int64_t taps = (int64_t)l->tap_rows * l->tap_cols, blocks_bytes = 4 * EA_RESCALE_WORDS * (int64_t)n_blocks;
    const int32_t *words = (const int32_t *)(const void *)(m->constants + op->rescale);
    int64_t written, window, read;

    if (l->zero_point != (int8_t)l->zero_point || l->low != (int8_t)l->low || l->high != (int8_t)l->high
        || (op->rescale & 3) != 0 || l->channels < 1 || l->rows < 1 || l->cols < 1
        || (l->cols > 1 && l->output_col_step < l->channels) || (l->rows > 1 && l->output_row_step < l->channels)
        || taps > MOST_TAPS)
        return 0;
    written = extent(l->rows, l->output_row_step, l->cols, l->output_col_step, l->channels);
    window = extent(l->tap_rows, l->tap_row_step, l->tap_cols, l->tap_col_step, l->run);
    read = extent(l->rows, l->input_row_step, l->cols, l->input_col_step, window) + EA_LANES;
    if (!fits(op->output, written, m->patch) || (op->kind == EA_FILL) != is_fill)
        return 0;
    if (is_fill)
        return l->rows == 1 && l->cols == 1;
    if (l->tap_rows < 1 || l->tap_cols < 1 || l->run < 1 || !fits(op->input, read, m->patch))
        return 0;
    switch (op->kind) {
    case EA_CONV:
        return l->depth >= taps * l->run && l->depth % EA_LANES == 0 && l->depth < taps * l->run + EA_LANES
            && fits(m->patch, 3 * ((int64_t)l->depth + EA_LANES), m->arena_bytes)
            && fits(op->weights, (int64_t)l->depth * l->channels, m->constants_bytes)
            && fits(op->rescale, blocks_bytes, m->constants_bytes) && rescale_is_sound(words, n_blocks);
    case EA_DEPTHWISE:
        return l->run >= l->channels && fits(op->weights, taps * n_blocks * EA_LANES, m->constants_bytes)
            && fits(op->rescale, blocks_bytes, m->constants_bytes) && rescale_is_sound(words, n_blocks);
    case EA_ADD:
        read = extent(l->rows, l->other_row_step, l->cols, l->other_col_step, l->channels) + EA_LANES;
        return taps == 1 && l->run >= l->channels && fits(op->other, read, m->patch)
            && fits(op->rescale, 32, m->constants_bytes) && terms_are_sound(words);
    case EA_AVERAGE:
    case EA_MAX:
    case EA_COPY:
        return l->run >= l->channels;
    default:
        return 0;
    }
}

/* Maps `program` without copying; EA_BAD_TABLES unless it is sound. */
static ea_status map(ea_model *m, const void *program, size_t size)
{
    int32_t header[EA_MODEL_HEADER_WORDS], i;

    if (m == NULL || program == NULL || ((uintptr_t)program & 3) != 0)
        return EA_BAD_ARGUMENT;
    if (size < sizeof header || size > EA_MODEL_LARGEST)
        return EA_BAD_TABLES;
    memcpy(header, program, sizeof header);
    if (header[0] != EA_MODEL_MAGIC || header[1] != EA_MODEL_VERSION || header[2] != (int32_t)size
        || !fields_are_small(header + 3, EA_MODEL_HEADER_WORDS - 3))
        return EA_BAD_TABLES;
    memcpy(&m->arena_bytes, header + 3, sizeof header - 12);
    m->operations = (const uint8_t *)program + sizeof header;
    if (m->n_fills > m->n_operations
        || sizeof header + (uint64_t)m->n_operations * sizeof(ea_operation) + (uint64_t)m->constants_bytes != size)
        return EA_BAD_TABLES;
    m->constants = m->operations + (size_t)m->n_operations * sizeof(ea_operation);
    if (m->patch > m->arena_bytes || m->patch % 16 != 0 || m->frames_rows < 1 || m->scores_rows < 1
        || (int64_t)m->frames_rows * m->frames_width > EA_MODEL_LARGEST
        || (int64_t)m->scores_rows * m->scores_width > EA_MODEL_LARGEST
        || !fits(m->frames, extent(m->frames_rows, m->frames_row_step, 1, 0, m->frames_width), m->patch)
        || !fits(m->scores, extent(m->scores_rows, m->scores_row_step, 1, 0, m->scores_width), m->patch))
        return EA_BAD_TABLES;
    for (i = 0; i < m->n_operations; i++) {
        const ea_operation op = operation(m, i);
        if (!fields_are_small(&op.kind, EA_OPERATION_WORDS - 3) || !operation_is_sound(m, &op, i < m->n_fills))
            return EA_BAD_TABLES;
    }
    return EA_OK;
}

size_t ea_model_memory_bytes(const void *program, size_t program_size)
{
    ea_model m;
    return map(&m, program, program_size) == EA_OK ? align16(sizeof m) + (size_t)m.arena_bytes : 0;
}

ea_status ea_model_init(ea_model **model, const void *program, size_t program_size, void *memory, size_t memory_size)
{
    ea_model *m = memory;
    ea_status status;

    if (model == NULL || memory == NULL || ((uintptr_t)memory & 7) != 0)
        return EA_BAD_ARGUMENT;
    if (memory_size < sizeof *m)
        return EA_NO_SPACE;
    status = map(m, program, program_size);
    if (status != EA_OK)
        return status;
    if (memory_size < align16(sizeof *m) + (size_t)m->arena_bytes)
        return EA_NO_SPACE;
    m->arena = (int8_t *)memory + align16(sizeof *m);
    memset(m->arena, 0, (size_t)m->arena_bytes);
    ea_model_reset(m);
    *model = m;
    return EA_OK;
}

void ea_model_reset(ea_model *model)
{
    int32_t i;
    for (i = 0; i < model->n_fills; i++) {
        const ea_operation op = operation(model, i);
        memset(model->arena + op.output, op.layer.zero_point, (size_t)op.layer.channels);
    }
}

static void run(const ea_model *m, const ea_operation *op)
{
    const int8_t *input = m->arena + op->input, *weights = (const int8_t *)m->constants + op->weights;
    const int32_t *rescale = (const int32_t *)(const void *)(m->constants + op->rescale);
    int16_t *patch = (int16_t *)(void *)(m->arena + m->patch);
    int8_t *output = m->arena + op->output;

    switch (op->kind) {
    case EA_CONV:
        ea_layer_conv(&op->layer, input, weights, rescale, patch, output);
        break;
    case EA_DEPTHWISE:
        ea_layer_depthwise(&op->layer, input, weights, rescale, output);
        break;
    case EA_ADD:
        ea_layer_add(&op->layer, input, m->arena + op->other, rescale, output);
        break;
    case EA_AVERAGE:
        ea_layer_average(&op->layer, input, output);
        break;
    case EA_MAX:
        ea_layer_max(&op->layer, input, output);
        break;
    default:
        ea_layer_copy(&op->layer, input, output);
    }
}

void ea_model_step(ea_model *model, const int8_t *frames, int8_t *scores)
{
    int32_t i;
    for (i = 0; i < model->frames_rows; i++)
        memcpy(model->arena + model->frames + i * model->frames_row_step, frames + i * model->frames_width,
               (size_t)model->frames_width);
    for (i = model->n_fills; i < model->n_operations; i++) {
        const ea_operation op = operation(model, i);
        run(model, &op);
    }
    for (i = 0; i < model->scores_rows; i++)
        memcpy(scores + i * model->scores_width, model->arena + model->scores + i * model->scores_row_step,
               (size_t)model->scores_width);
}

ea_status ea_model_process(ea_model *model, const int8_t *frames, int64_t n_steps, int8_t *scores)
{
    const int32_t taken = model->frames_rows * model->frames_width, given = model->scores_rows * model->scores_width;
    int64_t i;

    if (n_steps < 0 || (n_steps > 0 && (frames == NULL || scores == NULL)))
        return EA_BAD_ARGUMENT;
    for (i = 0; i < n_steps; i++)
        ea_model_step(model, frames + i * taken, scores + i * given);
    return EA_OK;
}

const int8_t *ea_model_arena(const ea_model *model)
{
    return model->arena;
}
