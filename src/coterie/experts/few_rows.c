/* Products of a few rows with matrices, at the speed at which memory delivers the matrices.

   One call serves several groups: the rows starts[g] .. starts[g + 1] of x are multiplied with the matrix at
   matrices[g] and get the bias at biases[g]. Each output is one sum in one fixed order, in float32, whatever
   is computed beside it: its bits depend neither on addresses, nor on the number of threads, nor on which
   rows and groups share a call.

   Plain C with the vector extensions that gcc and clang share; any instruction set will do. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BLOCK 32  /* numbers in two vectors */
#define ROWS 4    /* of x, that share one load of weights */
#define OUTPUTS 4 /* that share one load of x */
#define BLOCKS 4  /* of outputs at a time, in turned matrices */
#define FAR 8192  /* bytes ahead that weights are fetched, as hardware stops at the end of a page */
#define AHEAD 16  /* inputs whose weights are fetched early in turned matrices */
#define UNROLL _Pragma("GCC unroll 4")
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float octet __attribute__((vector_size(32)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef struct { vec a, b; } pair;

INLINE float from_bf16(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest, ties to even; every NaN becomes the quiet one. */
INLINE uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE float get(const void *p, long at, int bf16) {
    return bf16 ? from_bf16(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

INLINE void put(void *p, long at, float value, int bf16) {
    if (bf16)
        ((uint16_t *)p)[at] = to_bf16(value);
    else
        ((float *)p)[at] = value;
}

/* A block. Of bfloat16 the even numbers come first, then the odd ones: that takes one instruction each, where their
   own order takes many. */
INLINE pair load(const void *p, int bf16) {
    pair two;
    if (bf16) {
        bits both;
        memcpy(&both, p, sizeof both);
        __asm__("" ::: "memory"); /* one load, not two: off a multiple of 64 bytes each costs double */
        two.a = (vec)(both << 16);
        two.b = (vec)(both & 0xffff0000u);
    } else {
        memcpy(&two.a, p, sizeof two.a);
        memcpy(&two.b, (const float *)p + LANES, sizeof two.b);
    }
    return two;
}

/* The first `left` numbers of a block and zeros, to be loaded from `part`. */
static __attribute__((noinline)) const void *start_of(const void *p, long left, int bf16, char part[4 * BLOCK]) {
    memset(part, 0, 4 * BLOCK);
    return memcpy(part, p, left * (bf16 ? 2 : 4));
}

/* Where `load` puts number i. */
INLINE long placed(long i, int bf16) {
    const long at = i % BLOCK;
    return i - at + (bf16 ? at % 2 * LANES + at / 2 : at);
}

/* A row of x as float32, in the order in which its weights are loaded. */
INLINE void pack(const char *x, float *packed, long inputs, int w_bf16, int x_bf16) {
    if (w_bf16 != x_bf16) {
        for (long i = 0; i < inputs; i++)
            packed[placed(i, w_bf16)] = get(x, i, x_bf16);
        return;
    }
    char part[4 * BLOCK];
    for (long i = 0; i < inputs; i += BLOCK) {
        const void *at = x + i * (x_bf16 ? 2 : 4);
        const pair two = load(inputs - i < BLOCK ? start_of(at, inputs - i, x_bf16, part) : at, x_bf16);
        memcpy(packed + i, &two, sizeof two);
    }
}

INLINE float total(pair sum) {
    const vec both = sum.a + sum.b;
    octet low, high;
    memcpy(&low, &both, sizeof low);
    memcpy(&high, (const char *)&both + sizeof low, sizeof high);
    low += high;
    return ((low[0] + low[4]) + (low[2] + low[6])) + ((low[1] + low[5]) + (low[3] + low[7]));
}

/* Add the products of `left` inputs of a block: O outputs, whose weights lie `stride` bytes apart, of N rows. */
INLINE void add(pair sum[OUTPUTS][ROWS], const char *w, long stride, const float *x, long padded, long left, int bf16,
                const int O, const int N) {
    UNROLL
    for (int k = 0; k < O; k++) {
        const char *at = w + k * stride;
        for (long byte = 0; byte < (bf16 ? 64 : 128); byte += 64)
            __builtin_prefetch(at + (O == 1 ? FAR : O * stride) + byte);
        char part[4 * BLOCK];
        const pair weight = load(left < BLOCK ? start_of(at, left, bf16, part) : at, bf16);
        UNROLL
        for (int n = 0; n < N; n++) {
            vec a, b;
            memcpy(&a, x + n * padded, sizeof a);
            memcpy(&b, x + n * padded + LANES, sizeof b);
            sum[k][n].a += weight.a * a;
            sum[k][n].b += weight.b * b;
        }
    }
}

/* Outputs o .. o + O of N rows, matrix [outputs, inputs]. */
INLINE void tile(const char *w, const void *bias, const float *x, void *y, long o, long outputs, long inputs, int bf16,
                 int y_bf16, const int O, const int N) {
    const long size = bf16 ? 2 : 4, whole = inputs / BLOCK * BLOCK, padded = (inputs + BLOCK - 1) / BLOCK * BLOCK;
    pair sum[OUTPUTS][ROWS];
    UNROLL
    for (int k = 0; k < O; k++)
        UNROLL
        for (int n = 0; n < N; n++)
            sum[k][n].a = sum[k][n].b = (vec){0};
    w += o * inputs * size;
    for (long i = 0; i < whole; i += BLOCK)
        add(sum, w + i * size, inputs * size, x + i, padded, BLOCK, bf16, O, N);
    if (whole < inputs)
        add(sum, w + whole * size, inputs * size, x + whole, padded, inputs - whole, bf16, O, N);
    UNROLL
    for (int k = 0; k < O; k++)
        UNROLL
        for (int n = 0; n < N; n++)
            put(y, n * outputs + o + k, total(sum[k][n]) + (bias ? get(bias, o + k, bf16) : 0), y_bf16);
}

/* B blocks of outputs from o on (or one of `left` outputs), matrix [inputs, outputs]. */
INLINE void turned_tile(const char *w, const void *bias, const float *x, void *y, long o, long outputs, long inputs,
                        long left, int bf16, int y_bf16, const int B, const int N) {
    const long size = bf16 ? 2 : 4, padded = (inputs + BLOCK - 1) / BLOCK * BLOCK;
    char part[4 * BLOCK];
    pair sum[BLOCKS][ROWS];
    UNROLL
    for (int k = 0; k < B; k++)
        UNROLL
        for (int n = 0; n < N; n++)
            sum[k][n].a = sum[k][n].b = (vec){0};
    for (long i = 0; i < inputs; i++) {
        const char *row = w + (i * outputs + o) * size;
        for (long byte = 0; byte < B * BLOCK * size; byte += 64)
            __builtin_prefetch(row + AHEAD * outputs * size + byte);
        UNROLL
        for (int k = 0; k < B; k++) {
            const void *at = row + k * BLOCK * size;
            const pair weight = load(left < BLOCK ? start_of(at, left, bf16, part) : at, bf16);
            UNROLL
            for (int n = 0; n < N; n++) {
                const float value = x[n * padded + placed(i, bf16)];
                sum[k][n].a += weight.a * value;
                sum[k][n].b += weight.b * value;
            }
        }
    }
    UNROLL
    for (int k = 0; k < B; k++)
        UNROLL
        for (int n = 0; n < N; n++)
            for (long j = 0; j < (left); j++) {
                const long lane = placed(j, bf16), out = o + k * BLOCK + j;
                const float value = lane < LANES ? sum[k][n].a[lane] : sum[k][n].b[lane - LANES];
                put(y, n * outputs + out, value + (bias ? get(bias, out, bf16) : 0), y_bf16);
            }
}

#define TILE(O, N) tile(w, bias, x, y, at, outputs, inputs, bf16, y_bf16, O, N)
#define TURNED(B, N) turned_tile(w, bias, x, y, at, outputs, inputs, left, bf16, y_bf16, B, N)
/* So that numbers of rows and outputs are constants, with loops of their own. */
#define FOR_ROWS(CALL, C) n == 1 ? CALL(C, 1) : n == 2 ? CALL(C, 2) : CALL(C, ROWS)

/* Outputs o .. end of n rows: one, two or ROWS. */
INLINE void some_rows(const char *w, const void *bias, const float *x, void *y, long o, long end, long outputs,
                      long inputs, long n, int bf16, int y_bf16, int turned) {
    long at = o;
    if (turned) {
        long left = BLOCK;
        for (; at + BLOCKS * BLOCK <= end; at += BLOCKS * BLOCK)
            FOR_ROWS(TURNED, BLOCKS);
        for (; at < end; at += BLOCK) {
            left = end - at < BLOCK ? end - at : BLOCK;
            FOR_ROWS(TURNED, 1);
        }
    } else {
        for (; n > 1 && at + OUTPUTS <= end; at += OUTPUTS)
            n == 2 ? TILE(OUTPUTS, 2) : TILE(OUTPUTS, ROWS);
        for (; at < end; at++) /* one row reads a matrix front to back */
            FOR_ROWS(TILE, 1);
    }
}

INLINE void run(const void *const *matrices, const void *const *biases, const int64_t *starts, long groups,
                const float *packed, void *y, long outputs, long inputs, int threads, int bf16, int y_bf16, int turned) {
    const long step = turned ? BLOCKS * BLOCK : OUTPUTS, tiles = (outputs + step - 1) / step, jobs = groups * tiles;
    const long chunk = jobs / (threads * 4L) + 1, padded = (inputs + BLOCK - 1) / BLOCK * BLOCK;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (long job = 0; job < jobs; job++) {
        const long group = job / tiles, o = job % tiles * step, end = o + step < outputs ? o + step : outputs;
        for (long n, r = starts[group]; r < starts[group + 1]; r += n) {
            const long left = starts[group + 1] - r;
            n = left >= ROWS ? ROWS : left >= 2 ? 2 : 1;
            some_rows(matrices[group], biases ? biases[group] : 0, packed + r * padded,
                      (char *)y + r * outputs * (y_bf16 ? 2 : 4), o, end, outputs, inputs, n, bf16, y_bf16, turned);
        }
    }
}

/* x [rows, inputs] times matrices [outputs, inputs], or [inputs, outputs] where turned: y [rows, outputs].
   All without gaps; float32, or bfloat16 where the flag says so; biases (or null) are of the matrices' kind.
   Returns 0, or -1 where there is no memory for a copy of x. */
int products(const void *const *matrices, const void *const *biases, const int64_t *starts, int64_t groups,
             const void *x, void *y, int64_t outputs, int64_t inputs, int threads, int w_bf16, int x_bf16, int turned) {
    const long padded = (inputs + BLOCK - 1) / BLOCK * BLOCK, rows = starts[groups];
    float *packed = aligned_alloc(64, (rows * padded + BLOCK) * sizeof(float));
    if (!packed)
        return -1;
    memset(packed, 0, rows * padded * sizeof(float));
    for (long r = 0; r < rows; r++)
        pack((const char *)x + r * inputs * (x_bf16 ? 2 : 4), packed + r * padded, inputs, w_bf16, x_bf16);
#define RUN(W, T) run(matrices, biases, starts, groups, packed, y, outputs, inputs, threads, W, x_bf16, T)
    if (turned)
        w_bf16 ? RUN(1, 1) : RUN(0, 1);
    else
        w_bf16 ? RUN(1, 0) : RUN(0, 0);
    free(packed);
    return 0;
}
