// Passes over gradients that sparse compressors need, for one CPU core; plain C, like codecs.cpp.

#include "blocks.h"

namespace {

constexpr int64_t CHUNK = 4096;  // numbers between two looks at whether a pass may end early

}  // namespace

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
