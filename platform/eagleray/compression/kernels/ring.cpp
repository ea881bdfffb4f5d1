// Codes of int8_ring for one CPU core, with the bits of kernels/ring.py: see there for the arithmetic.

#include "blocks.h"

namespace {

template <typename F>  // calls f(block, its first number, how many it has)
INLINE void each_block(int64_t E, int64_t B, F f) {
    for (int64_t i = 0; i < E; i += B) f(i / B, i, E - i < B ? E - i : B);
}

}  // namespace

EXPORT void eagleray_ring_encode(const float* source, float* residual, const float* quanta, int8_t* codes,
                                 int64_t E, int64_t B, float levels, float gain_in, float gain_out) {
    each_block(E, B, [=](int64_t block, int64_t first, int64_t n) {
        const float* R from = source + first;
        float* R kept = residual + first;
        int8_t* R to = codes + first;
        float quantum = quanta[block], inverse = 1.0f / quantum;
        for (int64_t i = 0; i < n; i++) {
            float v = kept[i] * gain_in + from[i];
            float code = __builtin_rintf(v * inverse);
            code = code < -levels ? -levels : code;
            code = code > levels ? levels : code;
            to[i] = int8_t(int32_t(code));
            kept[i] = (v - code * quantum) * gain_out;
        }
    });
}

EXPORT void eagleray_ring_decode(const int8_t* codes, const float* quanta, int64_t E, int64_t B, float* out,
                                 float* most) {
    each_block(E, B, [=](int64_t block, int64_t first, int64_t n) {
        const int8_t* R from = codes + first;
        float* R to = out + first;
        float quantum = quanta[block];
        for (int64_t i = 0; i < n; i++) to[i] = float(from[i]) * quantum;
        uint32_t largest = absmax_bits(to, n);
        memcpy(most + block, &largest, 4);
    });
}
