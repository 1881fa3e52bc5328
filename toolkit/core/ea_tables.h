/* The integer tables of one front end: made once by toolkit/tables.py, carried in the bundle, mapped here in place.
 *
 * Blob: EA_TABLES_HEADER_WORDS little-endian int32 words (the fields below, in order, after magic, algorithm and
 * blob size), then the arrays in the order of the pointers below, each padded with zeros to a multiple of 4 bytes.
 */
#ifndef EA_TABLES_H
#define EA_TABLES_H

#include <stddef.h>
#include <stdint.h>

#include "ea_status.h"

#define EA_TABLES_MAGIC 0x54464145 /* "EAFT" */
#define EA_ALGORITHM 1             /* raised by any change that changes an output integer */
#define EA_TABLES_HEADER_WORDS 16
#define EA_LOG_SEGMENTS 128

enum { EA_SPECTRUM_MAGNITUDE = 0, EA_SPECTRUM_POWER = 1 };

typedef struct {
    int32_t sample_rate_hz;
    int32_t win_length;           /* samples, hop_length <= win_length <= n_fft */
    int32_t hop_length;           /* samples */
    int32_t n_fft;                /* a power of two, 16 .. 4096 */
    int32_t n_mels;               /* 1 .. 256 */
    int32_t n_mfcc;               /* 0 (log-mel) .. n_mels */
    int32_t spectrum;             /* EA_SPECTRUM_MAGNITUDE or EA_SPECTRUM_POWER */
    int32_t spectrum_bits;        /* a spectrum below 2^spectrum_bits cannot overflow a mel accumulator */
    int32_t pre_emphasis_q15;     /* 0 .. 32767 */
    int32_t log_floor_q24;        /* nat */
    int32_t output_fraction_bits; /* 0 .. 15 */

    const int16_t *window_q15;         /* [win_length] */
    const int32_t *fft_twiddle_q30;    /* per radix-4 stage of m > 1: re[3][m], im[3][m] */
    const int32_t *split_twiddle_q30;  /* [2][n_fft/4 + 1]: re, im of exp(-2 pi i k / n_fft) */
    const uint16_t *mel_segment_start; /* [n_mels + 2]: first bin of each segment between two mel edges */
    const int16_t *mel_rise_q15;       /* [n_fft/2 + 1]: weight of a bin in the filter that rises through it */
    const int32_t *log_q24;            /* [EA_LOG_SEGMENTS + 1]: ln(1 + i/128) */
    const int16_t *dct_q15;            /* [n_mfcc][n_mels] */
} ea_tables;

/* Maps `blob` (size bytes, 4-byte aligned, alive as long as `tables`) without copying.
 * EA_BAD_TABLES unless every field and index is one with which the run code stays inside its memory. */
ea_status ea_tables_map(ea_tables *tables, const void *blob, size_t size);

/* int32 words of fft_twiddle_q30 for a complex FFT of n points. */
size_t ea_fft_twiddle_words(int32_t n);

#endif
