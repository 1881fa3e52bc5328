/* Mel filters: triangles that are linear in mel, so that each bin lies on one rising and one falling side. */
#ifndef EA_MEL_H
#define EA_MEL_H

#include "ea_tables.h"

/* spectrum[k] = floor(sqrt(spectrum[k])), in place, [n_fft/2 + 1]; the OR of all results is returned. */
uint64_t ea_mel_magnitude(const ea_tables *tables, int64_t *spectrum);

/* Filters spectrum [n_fft/2 + 1] (bits: the OR of all of it) into mel [n_mels], both Q0, weights Q0.15.
 * Returns e: the real value of a filter output v is v * 2^e of the spectrum's unit. */
int ea_mel_filter(const ea_tables *tables, const int64_t *spectrum, uint64_t bits, int64_t *mel);

#endif
