// Passes over gradients that sparse compressors need, for one CPU core; plain C, like codecs.cpp.

#include "blocks.h"

namespace {

constexpr int64_t CHUNK = 4096;  // numbers between two looks at whether a pass may end early

template <typename Offset>
int64_t select(const float* source, const float* residual, float gain, int64_t n, float threshold,
               Offset* R offsets, float* R values, int64_t capacity) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 16) {
        alignas(64) float v[16];
        int64_t b = n - i < 16 ? n - i : 16;
        if (b < 16) memset(v, 0, sizeof v);
        if (residual)
            for (int64_t j = 0; j < b; j++) v[j] = source[i + j] + residual[i + j] * gain;
        else if (b < 16)
            memcpy(v, source + i, size_t(b) * 4);
        const float* from = residual || b < 16 ? v : source + i;
        uint32_t mask = mask_16(from, threshold) & ((1u << b) - 1);
        for (; mask; mask &= mask - 1, count++) {
            int j = __builtin_ctz(mask);
            if (count >= capacity) continue;
            offsets[count] = Offset(i + j);
            values[count] = from[j];
        }
    }
    return count;
}

}  // namespace

// Offsets, ascending, and values of v = source + residual * gain with |v| >= threshold, as far as there is
// room. Returns how many there are.
EXPORT int64_t eagleray_select(const float* source, const float* residual, float gain, int64_t n,
                               float threshold, void* offsets, int64_t offset_bytes, float* values,
                               int64_t capacity) {
    if (offset_bytes == 2)
        return select(source, residual, gain, n, threshold, (uint16_t*)offsets, values, capacity);
    return select(source, residual, gain, n, threshold, (uint32_t*)offsets, values, capacity);
}

// Spans are rows of first element and number of elements. Flags: 1 where a span has anything but zeros.
EXPORT void eagleray_used(const float* source, const int64_t* spans, int64_t P, uint8_t* flags) {
    for (int64_t p = 0; p < P; p++) {
        const float* v = source + spans[2 * p];
        int64_t n = spans[2 * p + 1];
        flags[p] = 0;
        for (int64_t i = 0; i < n && !flags[p]; i += CHUNK)
            flags[p] = absmax_bits(v + i, n - i < CHUNK ? n - i : CHUNK) != 0;
    }
}

// Largest magnitude of each span; NaN where it has a NaN.
EXPORT void eagleray_absmax(const float* source, const int64_t* spans, int64_t P, float* out) {
    for (int64_t p = 0; p < P; p++) {
        uint32_t most = absmax_bits(source + spans[2 * p], spans[2 * p + 1]);
        memcpy(out + p, &most, 4);
    }
}

// The first span with a NaN or an infinity, or -1.
EXPORT int64_t eagleray_first_bad(const float* source, const int64_t* spans, int64_t P) {
    for (int64_t p = 0; p < P; p++) {
        const float* v = source + spans[2 * p];
        int64_t n = spans[2 * p + 1];
        for (int64_t i = 0; i < n; i += CHUNK)
            if (absmax_bits(v + i, n - i < CHUNK ? n - i : CHUNK) >= INFINITE) return p;
    }
    return -1;
}
