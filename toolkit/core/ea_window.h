/* Pre-emphasis, window and block normalization of one frame. */
#ifndef EA_WINDOW_H
#define EA_WINDOW_H

#include "ea_tables.h"

/* Components below 2^EA_FRAME_BITS enter the FFT; four of them then sum within int32 (2^28.5 * 4 < 2^31). */
#define EA_FRAME_BITS 28

/* Windows `samples` (int16 Q0.15 [win_length]; samples[-1] is the one before, read only with pre-emphasis) into
 * even[n_fft/2] and odd[n_fft/2] (samples of even and odd index, zero-padded), scaled so that the loudest frame of
 * its bit length fills EA_FRAME_BITS. Returns e: the real value of a component v is v * 2^e. */
int ea_window_apply(const ea_tables *tables, const int16_t *samples, int32_t *even, int32_t *odd);

#endif
