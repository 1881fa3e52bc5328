/* Real FFT of n_fft points: a complex Stockham FFT of n = n_fft/2 points, then the split into the real spectrum.
 *
 * Stockham's autosort form (radix 4, one radix-2 stage where log2 n is odd) needs no bit reversal and reads and
 * writes in order, so that compilers vectorize it: C. Van Loan, "Computational Frameworks for the Fast Fourier
 * Transform", SIAM 1992, 1.7.
 * A radix-4 stage divides by 4, a radix-2 stage by 2, so magnitudes never grow: below 2^28.5 in, below 2^28.5 out.
 */
#ifndef EA_FFT_H
#define EA_FFT_H

#include "ea_tables.h"

/* Complex FFT of re/im [n], divided by n. `work` is as long as re and im together; a stage reads one and writes the
 * other. Returns 1 if the result lies in work (re at 0, im at n), 0 if it lies in re and im. */
int ea_fft_complex(const ea_tables *tables, int32_t *re, int32_t *im, int32_t *work);

/* |X[k]|^2 for k = 0 .. n_fft/2 from the complex FFT of the even/odd samples, scaled by (2/n)^2; below 2^62.
 * Works in re and im; `power` must not alias them. Returns the OR of all powers: its bit length bounds every one. */
uint64_t ea_fft_split_power(const ea_tables *tables, int32_t *re, int32_t *im, int64_t *power);

#endif
