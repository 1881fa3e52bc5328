/* The front end: int16 samples in blocks of any size -> int16 log-mel or MFCC frames.
 *
 *     samples -> window -> FFT -> power | magnitude -> mel -> log -> (DCT) -> round
 *
 * Set-up (ea_frontend_init) is apart from run (ea_frontend_process); the caller owns all memory; no allocation, no
 * float. Twin: toolkit/features.py, the same integers.
 */
#ifndef EA_FRONTEND_H
#define EA_FRONTEND_H

#include "ea_tables.h"

typedef struct {
    ea_tables tables;
    int16_t *history;  /* [1 + win_length]: the sample before the frame, then the frame so far */
    int32_t filled;    /* samples of the frame so far */
    int32_t *fft_re;   /* [n_fft/2] */
    int32_t *fft_im;   /* [n_fft/2] */
    int32_t *fft_work; /* [n_fft] */
    int64_t *spectrum; /* [n_fft/2 + 1] */
    int64_t *mel;      /* [n_mels] */
    int32_t *log_q24;  /* [n_mels] */
} ea_frontend;

/* Bytes of memory that ea_frontend_init needs for these tables; 0 if they are not valid. */
size_t ea_frontend_memory_bytes(const void *tables, size_t tables_size);

/* Lays a front end out in `memory` (8-byte aligned; it and `tables` must outlive it), resets it, sets *frontend. */
ea_status ea_frontend_init(ea_frontend **frontend, const void *tables, size_t tables_size, void *memory,
                           size_t memory_size);

/* Back to the state after ea_frontend_init: no history. */
void ea_frontend_reset(ea_frontend *frontend);

/* Width of a frame: n_mfcc, or n_mels where n_mfcc is 0. */
int32_t ea_frontend_width(const ea_frontend *frontend);

/* Frames that a block of n_samples would complete. */
int64_t ea_frontend_frames(const ea_frontend *frontend, int64_t n_samples);

/* Consumes samples [n_samples] and writes the completed frames to features [max_frames][width], *n_frames of them.
 * EA_NO_SPACE, with nothing consumed, if they are more than max_frames. features and samples must not overlap. */
ea_status ea_frontend_process(ea_frontend *frontend, const int16_t *samples, int64_t n_samples, int16_t *features,
                              int64_t max_frames, int64_t *n_frames);

/* codes[i] = saturate8(round(features[i] * multiplier * 2^-shift) + zero_point): int16 features to a model's int8. */
ea_status ea_requantize(const int16_t *features, int64_t n, int32_t multiplier, int32_t shift, int32_t zero_point,
                        int8_t *codes);

#endif
