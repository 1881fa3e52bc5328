/* The layers of an int8 network: exactly the integers of TFLite's reference kernels, in loops that compilers vectorize.
 *
 * A tensor is [rows][cols][channels] of int8 (time, bands, channels); its channels lie side by side, its rows and
 * columns row_step and col_step bytes apart, so that a tensor may be a part of another one. Layers work on EA_LANES
 * channels at once: they may READ up to EA_LANES - 1 bytes behind an input, which must be memory, and never write
 * there; constants are padded to whole blocks.
 *
 * Rounding is TFLite's: the product with a 31-bit multiplier is rounded half up, the shift to the right after it half
 * away from zero (gemmlowp's SaturatingRoundingDoublingHighMul and RoundingDivideByPOT). The zero point of an input is
 * part of the bias: sum((x - z) w) = sum(x w) - z sum(w). No sum may leave 32 bits; who makes the constants sees to it
 * (toolkit/program.py).
 */
#ifndef EA_LAYERS_H
#define EA_LAYERS_H

#include <stddef.h>
#include <stdint.h>

#define EA_LANES 16

/* n rounded up to whole blocks. */
#define EA_PADDED(n) (((n) + EA_LANES - 1) / EA_LANES * EA_LANES)

/* One layer; every field is what the caller has checked, and positive or 0. Steps are in bytes. */
typedef struct {
    int32_t rows, cols, channels; /* of the output */
    int32_t input_row_step, input_col_step; /* from the window of one output to that of the next */
    int32_t other_row_step, other_col_step; /* the same of a second input; 0: one value for all */
    int32_t output_row_step, output_col_step;
    int32_t tap_rows, tap_cols, tap_row_step, tap_col_step; /* the window: tap_rows x tap_cols runs of `run` bytes */
    int32_t run;
    int32_t depth; /* of ea_layer_conv: bytes of the window, tap_rows * tap_cols * run, padded */
    int32_t zero_point, low, high; /* of the output: what is added last, and the range of the activation */
} ea_layer;

/* How sums become int8, per block of EA_LANES channels: bias, multiplier (Q0.31), shift to the left (before), shift to
 * the right (after the product), each int32 [EA_LANES]. */
#define EA_RESCALE_WORDS (4 * EA_LANES)

/* Convolution. weights [channels][depth], zero where the window is padded; rescale [blocks of channels][
 * EA_RESCALE_WORDS]; patch: scratch of 3 * (depth + EA_LANES) bytes, 2-byte aligned. */
void ea_layer_conv(const ea_layer *layer, const int8_t *input, const int8_t *weights, const int32_t *rescale,
                   int16_t *patch, int8_t *output);

/* Convolution of each channel by itself. weights [blocks of channels][tap_rows * tap_cols][EA_LANES]; rescale as
 * above. */
void ea_layer_depthwise(const ea_layer *layer, const int8_t *input, const int8_t *weights, const int32_t *rescale,
                        int8_t *output);

/* input + other, each with a scale of its own. terms int32 [8]: zero point, multiplier, shift to the right of input;
 * the same of other; multiplier and shift to the right of their sum. */
void ea_layer_add(const ea_layer *layer, const int8_t *input, const int8_t *other, const int32_t *terms,
                  int8_t *output);

/* The mean of a window, rounded half away from zero. */
void ea_layer_average(const ea_layer *layer, const int8_t *input, int8_t *output);

/* The greatest of a window. */
void ea_layer_max(const ea_layer *layer, const int8_t *input, int8_t *output);

/* The same integers at another place; they may overlap if output lies before input. */
void ea_layer_copy(const ea_layer *layer, const int8_t *input, int8_t *output);

#endif
