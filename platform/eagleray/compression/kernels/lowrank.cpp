// Products of a gradient, as a matrix, with a few vectors: what kernels/lowrank.py says, for float32 on one
// core.
//
// All of it waits for memory: from the right, gradient and residual are read once and the residual written once;
// from the left, where a product needs all rows, they are read twice. (Panels of columns that stay in a cache
// were no faster: 64-byte pieces of rows.) Vectors lie one behind the other, [rank, length]. Arithmetic is by
// whole vectors of 16, whatever the machine's registers are, without fused multiply-add: the same bits on every CPU.

#include "blocks.h"

namespace {

constexpr int64_t LANES = 16, GROUP = 4, ROWS = 4;  // GROUP: vectors worked on at a time, in registers
constexpr int64_t PANEL = 4096;                     // columns worked on at a time
constexpr int64_t STREAMED_BYTES = 256 << 10;  // larger results go past the caches
constexpr float DEPENDENT = 1e-5f;

typedef float V __attribute__((vector_size(64)));

INLINE V load(const float* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE V load_some(const float* p, int64_t n) {
#if defined(__AVX512F__)
    return (V)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#endif
    V v = {};
    memcpy(&v, p, size_t(n) * 4);
    return v;
}
INLINE void store(float* p, V v) { memcpy(p, &v, sizeof v); }

INLINE void stream(float* p, V v) {  // p: a multiple of 64 bytes
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#else
    store(p, v);
#endif
}
INLINE void end_of_streams() {  // before another thread may read what was streamed
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}
INLINE bool is_aligned(const float* p) { return uintptr_t(p) % 64 == 0; }
INLINE bool is_finite(float x) { return (bits_of(x) & 0x7fffffff) < INFINITE; }

INLINE float sum_of(V v) {
    float x[LANES];
    store(x, v);
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

// y[k, i + t] = sum over j of v[i + t, j] * x[k, j], for `rows` rows and K vectors.
template <int K>
void row_dots(const float* g, const float* e, float inverse, int64_t b, int64_t rows, const float* x,
              float* y, int64_t a) {
    V sums[ROWS][K] = {};
    if (rows == ROWS) {
        for (int64_t j = 0; j + LANES <= b; j += LANES) {
            V xs[K];
            for (int k = 0; k < K; k++) xs[k] = load(x + k * b + j);
            for (int t = 0; t < ROWS; t++) {
                V v = load(g + t * b + j) * inverse + load(e + t * b + j);
                for (int k = 0; k < K; k++) sums[t][k] += v * xs[k];
            }
        }
    } else {
        for (int64_t j = 0; j + LANES <= b; j += LANES)
            for (int64_t t = 0; t < rows; t++) {
                V v = load(g + t * b + j) * inverse + load(e + t * b + j);
                for (int k = 0; k < K; k++) sums[t][k] += v * load(x + k * b + j);
            }
    }
    if (int64_t j = b / LANES * LANES, n = b - j; n)
        for (int64_t t = 0; t < rows; t++) {
            V v = load_some(g + t * b + j, n) * inverse + load_some(e + t * b + j, n);
            for (int k = 0; k < K; k++) sums[t][k] += v * load_some(x + k * b + j, n);
        }
    for (int64_t t = 0; t < rows; t++)
        for (int k = 0; k < K; k++) y[k * a + t] = sum_of(sums[t][k]);
}

// e = v - sum over k of ys[k] * x[k] in one row; for the vectors after the first, v is e already.
template <bool first, int K>
void row_less(const float* g, float* e, float inverse, int64_t width, const float* ys, const float* x,
              int64_t b) {
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) {
        V v = first ? load(g + j) * inverse + load(e + j) : load(e + j);
        for (int k = 0; k < K; k++) v -= load(x + k * b + j) * ys[k];
        store(e + j, v);
    }
    for (; j < width; j++) {
        float v = first ? g[j] * inverse + e[j] : e[j];
        for (int k = 0; k < K; k++) v -= x[k * b + j] * ys[k];
        e[j] = v;
    }
}

#define BY_COUNT(count, call) \
    switch (count) {          \
        case 1:               \
            call(1);          \
            break;            \
        case 2:               \
            call(2);          \
            break;            \
        case 3:               \
            call(3);          \
            break;            \
        default:              \
            call(4);          \
    }

INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

void project_rows(const float* g, float* e, float inverse, int64_t a, int64_t b, int64_t r, const float* x,
                  float* y) {
    for (int64_t i = 0; i < a; i += ROWS) {
        int64_t rows = smaller(ROWS, a - i);
        for (int64_t k = 0; k < r; k += GROUP) {
#define CALL(K) row_dots<K>(g + i * b, e + i * b, inverse, b, rows, x + k * b, y + k * a + i, a)
            BY_COUNT(r - k, CALL)
#undef CALL
        }
        for (int64_t t = i; t < i + rows; t++) {
            bool good = true;
            for (int64_t k = 0; k < r; k++) good &= is_finite(y[k * a + t]);
            if (!good) continue;
            for (int64_t k = 0; k < r; k += GROUP) {
                float ys[GROUP] = {};
                for (int64_t c = 0; c < smaller(GROUP, r - k); c++) ys[c] = y[(k + c) * a + t];
#define CALL(K)                                                             \
    k ? row_less<false, K>(g + t * b, e + t * b, inverse, b, ys, x + k * b, b) \
      : row_less<true, K>(g + t * b, e + t * b, inverse, b, ys, x, b)
                BY_COUNT(r - k, CALL)
#undef CALL
            }
        }
    }
}

// y[k, j] += sum over the rows i .. i + rows of v[i, j] * x[k, i], for `width` columns and K vectors.
template <int K>
void column_sums(const float* g, const float* e, float inverse, int64_t b, int64_t rows, int64_t width,
                 const float* x, int64_t a, float* y) {
    float xs[ROWS][K];
    for (int64_t t = 0; t < ROWS; t++)
        for (int k = 0; k < K; k++) xs[t][k] = t < rows ? x[k * a + t] : 0.0f;
    int64_t j = 0;
    if (rows == ROWS)
        for (; j + LANES <= width; j += LANES) {
            V sums[K];
            for (int k = 0; k < K; k++) sums[k] = load(y + k * b + j);
            for (int t = 0; t < ROWS; t++) {
                V v = load(g + t * b + j) * inverse + load(e + t * b + j);
                for (int k = 0; k < K; k++) sums[k] += v * xs[t][k];
            }
            for (int k = 0; k < K; k++) store(y + k * b + j, sums[k]);
        }
    for (; j < width; j++)
        for (int64_t t = 0; t < rows; t++) {
            float v = g[t * b + j] * inverse + e[t * b + j];
            for (int k = 0; k < K; k++) y[k * b + j] += v * xs[t][k];
        }
}

void project_columns(const float* g, float* e, float inverse, int64_t a, int64_t b, int64_t r, const float* x,
                     float* y) {
    memset(y, 0, size_t(r * b) * 4);
    for (int64_t j = 0; j < b; j += PANEL) {
        int64_t width = smaller(PANEL, b - j);
        for (int64_t i = 0; i < a; i += ROWS)
            for (int64_t k = 0; k < r; k += GROUP) {
#define CALL(K)                                                                                              \
    column_sums<K>(g + i * b + j, e + i * b + j, inverse, b, smaller(ROWS, a - i), width, x + k * a + i, a, \
                   y + k * b + j)
                BY_COUNT(r - k, CALL)
#undef CALL
            }
        bool good[PANEL], all_good = true;
        for (int64_t c = 0; c < width; c++) {
            good[c] = true;
            for (int64_t k = 0; k < r; k++) good[c] &= is_finite(y[k * b + j + c]);
            all_good &= good[c];
        }
        for (int64_t i = 0; i < a; i++) {
            const float* from = g + i * b + j;
            float* kept = e + i * b + j;
            if (all_good) {
                for (int64_t k = 0; k < r; k += GROUP) {
                    float xs[GROUP] = {};
                    for (int64_t c = 0; c < smaller(GROUP, r - k); c++) xs[c] = x[(k + c) * a + i];
#define CALL(K)                                                                \
    k ? row_less<false, K>(from, kept, inverse, width, xs, y + k * b + j, b)   \
      : row_less<true, K>(from, kept, inverse, width, xs, y + j, b)
                    BY_COUNT(r - k, CALL)
#undef CALL
                }
                continue;
            }
            for (int64_t c = 0; c < width; c++) {
                if (!good[c]) continue;
                float v = from[c] * inverse + kept[c];
                for (int64_t k = 0; k < r; k++) v -= y[k * b + j + c] * x[k * a + i];
                kept[c] = v;
            }
        }
    }
}

// Sum of x * y over n, zeros added up to a power of two, as a tree of halves.
float dot(const float* x, const float* y, int64_t n, float* work) {
    int64_t half = 1;
    while (2 * half < n) half *= 2;
    if (n == 1) return x[0] * y[0];
    for (int64_t i = 0; i < n - half; i++) work[i] = x[i] * y[i] + x[i + half] * y[i + half];
    for (int64_t i = n - half; i < half; i++) work[i] = x[i] * y[i] + 0.0f;
    for (half /= 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) work[i] += work[i + half];
    return work[0];
}

}  // namespace

// See `LowRank.project`: from the right (x [r, b], y [r, a]), else from the left (x [r, a], y [r, b]).
EXPORT void eagleray_project(const float* g, float* e, float inverse, int64_t a, int64_t b, int64_t r,
                             const float* x, float* y, int64_t from_right) {
    if (from_right)
        project_rows(g, e, inverse, a, b, r, x, y);
    else
        project_columns(g, e, inverse, a, b, r, x, y);
}

// out[i, j] = sum over k of left[k, i] * scale * right[k, j], in the order of k.
EXPORT void eagleray_expand(const float* left, const float* right, int64_t a, int64_t b, int64_t r,
                            float scale, float* out) {
    bool streamed = a * b * 4 >= STREAMED_BYTES;
    for (int64_t i = 0; i < a; i++, out += b) {
        int64_t j = 0;
        auto one = [&](int64_t j) {
            float sum = left[i] * scale * right[j];
            for (int64_t k = 1; k < r; k++) sum += left[k * a + i] * scale * right[k * b + j];
            out[j] = sum;
        };
        if (streamed)
            for (; j < b && !is_aligned(out + j); j++) one(j);
        for (; j + LANES <= b; j += LANES) {
            V sum = load(right + j) * (left[i] * scale);
            for (int64_t k = 1; k < r; k++) sum += load(right + k * b + j) * (left[k * a + i] * scale);
            if (streamed)
                stream(out + j, sum);
            else
                store(out + j, sum);
        }
        for (; j < b; j++) one(j);
    }
    end_of_streams();
}

// See `LowRank.orthogonalise`; x, start: [r, n], work: [n].
EXPORT void eagleray_orthogonalise(float* x, const float* start, int64_t r, int64_t n, float* work) {
    for (int64_t k = 0; k < r; k++) {
        float* v = x + k * n;
        float after = 0;
        for (int attempt = 0; attempt < 2; attempt++) {
            if (attempt) memcpy(v, start + k * n, size_t(n) * 4);
            float most = float_of(absmax_bits(v, n));
            if (!(most > 0)) continue;
            for (int64_t i = 0; i < n; i++) v[i] /= most;
            float before = __builtin_sqrtf(dot(v, v, n, work));
            for (int round = 0; round < 2; round++)
                for (int64_t j = 0; j < k; j++) {
                    const float* other = x + j * n;
                    float along = dot(v, other, n, work);
                    for (int64_t i = 0; i < n; i++) v[i] -= other[i] * along;
                }
            after = __builtin_sqrtf(dot(v, v, n, work));
            if (after > before * DEPENDENT) break;
        }
        for (int64_t i = 0; i < n; i++) v[i] = after > 0 ? v[i] / after : 0.0f;
    }
}
