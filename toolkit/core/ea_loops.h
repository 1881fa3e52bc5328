/* How the hot loops are compiled. Nothing here changes a result; both macros may be empty. */
#ifndef EA_LOOPS_H
#define EA_LOOPS_H

/* Before a function: gcc compiles it, with all that it calls, for AVX2 (2013), for SSE4.1 (2008) and for any x86-64,
 * and the loader picks. Without SSE4.1 there is no vector product of signed 32-bit numbers in 64 bits.
 * -DEA_CLONES= compiles it once, for the machine that -march names. */
#ifndef EA_CLONES
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define EA_CLONES __attribute__((flatten, target_clones("avx2", "sse4.1", "default")))
#else
#define EA_CLONES
#endif
#endif

/* Before a loop: no iteration reads or writes what another one writes. gcc gives up on asking that at run time. */
#if defined(__GNUC__) && !defined(__clang__)
#define EA_INDEPENDENT _Pragma("GCC ivdep")
#else
#define EA_INDEPENDENT
#endif

#endif
