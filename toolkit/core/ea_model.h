/* An int8 step model: a program of layers over one arena, made of a .tflite by toolkit/program.py.
 *
 * Blob: EA_MODEL_HEADER_WORDS little-endian int32 words (the fields of ea_model from arena_bytes on, after magic,
 * version and blob size), then the operations, EA_OPERATION_WORDS each, then the constants: weights, and int32 words.
 * The past of a model lies in its arena; the last operations of a step move it on. Nothing else is kept.
 */
#ifndef EA_MODEL_H
#define EA_MODEL_H

#include "ea_layers.h"
#include "ea_status.h"

#define EA_MODEL_MAGIC 0x504d4145 /* "EAMP" */
#define EA_MODEL_VERSION 1
#define EA_MODEL_HEADER_WORDS 16
#define EA_OPERATION_WORDS 24
#define EA_MODEL_LARGEST (1 << 28) /* of any field: products of two fit 64 bits many times */

enum {
    EA_FILL = 0, /* of reset, first in the program: channels bytes at output become zero_point */
    EA_CONV = 1,
    EA_DEPTHWISE = 2,
    EA_ADD = 3,
    EA_AVERAGE = 4,
    EA_MAX = 5,
    EA_COPY = 6
};

typedef struct {
    int32_t kind;
    int32_t input, other, output; /* bytes into the arena */
    int32_t weights, rescale;     /* bytes into the constants */
    ea_layer layer;
} ea_operation;

typedef struct {
    int32_t arena_bytes;
    int32_t patch;      /* bytes into the arena: the scratch of ea_layer_conv, the last in it */
    int32_t n_fills;    /* operations of reset, before those of a step */
    int32_t n_operations;
    int32_t frames, frames_rows, frames_row_step, frames_width; /* where the input goes, bytes into the arena */
    int32_t scores, scores_rows, scores_row_step, scores_width; /* where the output comes from */
    int32_t constants_bytes;

    const uint8_t *operations;
    const uint8_t *constants;
    int8_t *arena;
} ea_model;

/* Bytes of memory that ea_model_init needs for this program; 0 if it is not valid. */
size_t ea_model_memory_bytes(const void *program, size_t program_size);

/* Lays a model out in `memory` (8-byte aligned; it and `program`, 4-byte aligned, must outlive it), resets it and sets
 * *model. EA_BAD_TABLES unless every field is one with which all layers stay inside the arena and the constants. */
ea_status ea_model_init(ea_model **model, const void *program, size_t program_size, void *memory, size_t memory_size);

/* Back to the state after ea_model_init: the past is the zero point. */
void ea_model_reset(ea_model *model);

/* One step: frames int8 [frames_rows][frames_width] -> scores int8 [scores_rows][scores_width]; no overlap. */
void ea_model_step(ea_model *model, const int8_t *frames, int8_t *scores);

/* n_steps steps, one after the other: frames [n_steps][frames_rows][frames_width] -> scores of all. */
ea_status ea_model_process(ea_model *model, const int8_t *frames, int64_t n_steps, int8_t *scores);

/* The arena, arena_bytes of it: a state lies where the program was made to put it, unchanged between steps. */
const int8_t *ea_model_arena(const ea_model *model);

#endif
