#include "ea_frontend.h"

#include <string.h>

#include "ea_dct.h"
#include "ea_fft.h"
#include "ea_fixed.h"
#include "ea_log.h"
#include "ea_mel.h"
#include "ea_window.h"

static size_t align8(size_t bytes)
{
    return (bytes + 7) & ~(size_t)7;
}

/* Lays the buffers out behind the struct at `f` (or only counts, if memory is null); returns the bytes they take. */
static size_t lay_out(ea_frontend *f, uint8_t *memory)
{
    const size_t n = (size_t)f->tables.n_fft / 2, n_mels = (size_t)f->tables.n_mels;
    const size_t history = align8(2 * ((size_t)f->tables.win_length + 1)), fft = align8(4 * n);
    const size_t self = align8(sizeof *f), spectrum = 8 * (n + 1), mel = 8 * n_mels, log = align8(4 * n_mels);

    if (memory != NULL) {
        memory += self;
        f->spectrum = (void *)memory, memory += spectrum;
        f->mel = (void *)memory, memory += mel;
        f->fft_re = (void *)memory, memory += fft;
        f->fft_im = (void *)memory, memory += fft;
        f->fft_work = (void *)memory, memory += 2 * fft;
        f->log_q24 = (void *)memory, memory += log;
        f->history = (void *)memory;
    }
    return self + history + 4 * fft + spectrum + mel + log;
}

size_t ea_frontend_memory_bytes(const void *tables, size_t tables_size)
{
    ea_frontend f;
    return ea_tables_map(&f.tables, tables, tables_size) == EA_OK ? lay_out(&f, NULL) : 0;
}

ea_status ea_frontend_init(ea_frontend **frontend, const void *tables, size_t tables_size, void *memory,
                           size_t memory_size)
{
    ea_frontend *f = memory;
    ea_status status;

    if (frontend == NULL || memory == NULL || ((uintptr_t)memory & 7) != 0)
        return EA_BAD_ARGUMENT;
    if (memory_size < sizeof *f)
        return EA_NO_SPACE;
    status = ea_tables_map(&f->tables, tables, tables_size);
    if (status != EA_OK)
        return status;
    if (lay_out(f, NULL) > memory_size)
        return EA_NO_SPACE;
    lay_out(f, memory);
    ea_frontend_reset(f);
    *frontend = f;
    return EA_OK;
}

void ea_frontend_reset(ea_frontend *frontend)
{
    frontend->filled = 0;
    frontend->history[0] = 0;
}

int32_t ea_frontend_width(const ea_frontend *frontend)
{
    return frontend->tables.n_mfcc > 0 ? frontend->tables.n_mfcc : frontend->tables.n_mels;
}

int64_t ea_frontend_frames(const ea_frontend *frontend, int64_t n_samples)
{
    const int64_t beyond = frontend->filled + n_samples - frontend->tables.win_length;
    return beyond < 0 ? 0 : beyond / frontend->tables.hop_length + 1;
}

/* One frame: samples [win_length] (with the one before at samples[-1]) -> out [width]. */
static void process_frame(ea_frontend *f, const int16_t *samples, int16_t *out)
{
    const ea_tables *t = &f->tables;
    const int32_t n = t->n_fft / 2;
    uint64_t bits;
    int32_t i;
    int exponent, in_work;

    exponent = ea_window_apply(t, samples, f->fft_re, f->fft_im);
    in_work = ea_fft_complex(t, f->fft_re, f->fft_im, f->fft_work);
    exponent += ea_bit_length((uint64_t)n) - 2; /* the FFT divided by n, the split doubled */
    bits = ea_fft_split_power(t, in_work ? f->fft_work : f->fft_re, in_work ? f->fft_work + n : f->fft_im,
                              f->spectrum);
    if (t->spectrum == EA_SPECTRUM_MAGNITUDE)
        bits = ea_mel_magnitude(t, f->spectrum);
    else
        exponent *= 2;
    exponent += ea_mel_filter(t, f->spectrum, bits, f->mel);
    ea_log_natural(t, f->mel, exponent, f->log_q24);
    if (t->n_mfcc > 0) {
        ea_dct_apply(t, f->log_q24, out);
    } else {
        for (i = 0; i < t->n_mels; i++)
            out[i] = ea_saturate16(ea_round_shift(f->log_q24[i], 24 - t->output_fraction_bits));
    }
}

ea_status ea_frontend_process(ea_frontend *frontend, const int16_t *samples, int64_t n_samples, int16_t *features,
                              int64_t max_frames, int64_t *n_frames)
{
    ea_frontend *f = frontend;
    const int32_t win_length = f->tables.win_length, hop_length = f->tables.hop_length;
    const int32_t width = ea_frontend_width(f);
    int16_t *frame = f->history + 1;

    if (n_frames == NULL || n_samples < 0 || (n_samples > 0 && samples == NULL))
        return EA_BAD_ARGUMENT;
    *n_frames = 0;
    if (ea_frontend_frames(f, n_samples) > max_frames)
        return EA_NO_SPACE;
    while (n_samples > 0) {
        const int64_t missing = win_length - f->filled;
        const int32_t taken = (int32_t)(n_samples < missing ? n_samples : missing);

        memcpy(frame + f->filled, samples, sizeof *samples * (size_t)taken);
        f->filled += taken;
        samples += taken;
        n_samples -= taken;
        if (f->filled == win_length) {
            process_frame(f, frame, features + *n_frames * width);
            *n_frames += 1;
            memmove(f->history, f->history + hop_length, sizeof *frame * (size_t)(win_length + 1 - hop_length));
            f->filled -= hop_length;
        }
    }
    return EA_OK;
}

ea_status ea_requantize(const int16_t *features, int64_t n, int32_t multiplier, int32_t shift, int32_t zero_point,
                        int8_t *codes)
{
    int64_t i;
    if (n < 0 || (n > 0 && (features == NULL || codes == NULL)) || multiplier <= 0 || shift < 1 || shift > 46)
        return EA_BAD_ARGUMENT;
    for (i = 0; i < n; i++)
        codes[i] = ea_saturate8(ea_round_shift((int64_t)features[i] * multiplier, shift) + zero_point);
    return EA_OK;
}
