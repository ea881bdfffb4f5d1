// One block of numbers into codes and back, with the bits of kernels/eager.py: see there for the arithmetic.
//
// Loops are written for the compiler to vectorise. No fused multiply-add (-ffp-contract=off): it would give
// other bits than torch.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define R __restrict

namespace {

enum Kind { RAW, FP16, BF16, INT8, INT4, SIGN };

constexpr int64_t MAX_BLOCK = 4096;
constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23
constexpr float SMALLEST_SCALE = 0x1p-126f;
constexpr uint32_t LIMIT = 0x7f000000;  // 2^127
constexpr uint32_t INFINITE = 0x7f800000;
constexpr uint16_t NAN_BF16 = 0x7fc0, NAN_FP16 = 0x7e00;

INLINE uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}
INLINE float float_of(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}
INLINE float load_bf16(const uint8_t* from) {
    uint16_t b;
    memcpy(&b, from, 2);
    return float_of(uint32_t(b) << 16);
}
INLINE void store_u16(uint8_t* to, uint16_t b) { memcpy(to, &b, 2); }

INLINE uint16_t to_bf16(float x) {
    uint32_t b = bits_of(x);
    uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return (b & 0x7fffffff) > INFINITE ? NAN_BF16 : uint16_t(rounded);
}

INLINE uint32_t absmax_bits(const float* R v, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t b = int32_t(bits_of(v[i]) & 0x7fffffff);
        most = b > most ? b : most;
    }
    return uint32_t(most);
}

// Bit i: |v[i]| >= threshold; false for NaN.
INLINE uint32_t mask_16(const float* R v, float threshold) {
#if defined(__AVX512F__)
    __m512i magnitude =
        _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(v)), _mm512_set1_epi32(int(0x7fffffff)));
    return _mm512_cmp_ps_mask(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(threshold), _CMP_GE_OQ);
#elif defined(__AVX2__)
    __m256 sign = _mm256_set1_ps(-0.0f), least = _mm256_set1_ps(threshold);
    __m256 low = _mm256_cmp_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(v)), least, _CMP_GE_OQ);
    __m256 high = _mm256_cmp_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(v + 8)), least, _CMP_GE_OQ);
    return uint32_t(_mm256_movemask_ps(low)) | uint32_t(_mm256_movemask_ps(high)) << 8;
#else
    uint32_t mask = 0;
    for (int i = 0; i < 16; i++) mask |= uint32_t(__builtin_fabsf(v[i]) >= threshold) << i;
    return mask;
#endif
}

// Codecs with scales: one block of b <= B numbers.

constexpr int64_t per_byte(Kind kind) { return kind == INT4 ? 2 : kind == SIGN ? 8 : 1; }

INLINE void lose(float* R residual, float v, float decoded, float keep, float gain) {
    *residual = *residual * keep + (v - decoded) * gain;
}

template <Kind kind>
INLINE float block_scale(const float* R v, int64_t b, int64_t B, bool* good) {
    if constexpr (kind == SIGN) {
        float sum[MAX_BLOCK];
        int64_t half = B / 2;
        if (b == B) {
            for (int64_t i = 0; i < half; i++)
                sum[i] = float_of(bits_of(v[i]) & 0x7fffffff) + float_of(bits_of(v[i + half]) & 0x7fffffff);
        } else {
            for (int64_t i = 0; i < B; i++) sum[i] = i < b ? float_of(bits_of(v[i]) & 0x7fffffff) : 0.0f;
            for (int64_t i = 0; i < half; i++) sum[i] += sum[i + half];
        }
        for (half /= 2; half; half /= 2)
            for (int64_t i = 0; i < half; i++) sum[i] += sum[i + half];
        *good = bits_of(sum[0]) < LIMIT;
        return float_of(uint32_t(to_bf16(sum[0] * float(1.0 / double(b)))) << 16);
    } else {
        uint32_t most = absmax_bits(v, b);
        *good = most < LIMIT;
        if (!most || !*good) return 0.0f;
        float scale = float_of(most) * float(1.0 / (kind == INT4 ? 7.0 : 127.0));
        scale = scale < SMALLEST_SCALE ? SMALLEST_SCALE : scale;
        return float_of((bits_of(scale) + 0xffff) & 0xffff0000);
    }
}

template <Kind kind, bool has_residual>
INLINE void block_codes(const float* R v, int64_t b, float scale, uint8_t* R codes, float* R residual,
                        float keep, float gain) {
    if constexpr (kind == SIGN) {
        int64_t width = (b + 7) / 8, whole = b % 8 ? 0 : width;
        uint32_t s = bits_of(scale);
        for (int64_t j = 0; j < whole; j++) {
            uint32_t byte = 0;
            for (int k = 0; k < 8; k++) byte |= (bits_of(v[k * width + j]) & 0x80000000) >> (31 - k);
            codes[j] = uint8_t(byte);
        }
        for (int64_t j = whole; j < width; j++) {
            codes[j] = 0;
            for (int64_t k = 0; k < 8 && k * width + j < b; k++)
                codes[j] |= uint8_t(bits_of(v[k * width + j]) >> 31 << k);
        }
        if constexpr (has_residual)
            for (int64_t i = 0; i < b; i++)
                lose(residual + i, v[i], float_of(s ^ (bits_of(v[i]) & 0x80000000)), keep, gain);
    } else {
        float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        if constexpr (kind == INT8) {
            for (int64_t i = 0; i < b; i++) {
                float level = v[i] * inverse + ROUND;
                codes[i] = uint8_t(bits_of(level));
                if constexpr (has_residual) lose(residual + i, v[i], (level - ROUND) * scale, keep, gain);
            }
        } else {
            int64_t width = (b + 1) / 2, pairs = b / 2;
            const float* R high = v + width;
            float* R high_residual = has_residual ? residual + width : nullptr;
            for (int64_t j = 0; j < pairs; j++) {
                float low_level = v[j] * inverse + ROUND, high_level = high[j] * inverse + ROUND;
                codes[j] = uint8_t((bits_of(low_level) & 15) | (bits_of(high_level) << 4));
                if constexpr (has_residual) {
                    lose(residual + j, v[j], (low_level - ROUND) * scale, keep, gain);
                    lose(high_residual + j, high[j], (high_level - ROUND) * scale, keep, gain);
                }
            }
            if (pairs < width) {
                float level = v[pairs] * inverse + ROUND;
                codes[pairs] = uint8_t(bits_of(level) & 15);
                if constexpr (has_residual)
                    lose(residual + pairs, v[pairs], (level - ROUND) * scale, keep, gain);
            }
        }
    }
}

template <bool add>
INLINE void put(float* R out, float x) {
    *out = add ? *out + x : x;
}

template <Kind kind, bool add>
INLINE void block_decode(const uint8_t* R codes, int64_t b, float scale, float factor, float* R out) {
    if constexpr (kind == INT8) {
        for (int64_t i = 0; i < b; i++) put<add>(out + i, float(int8_t(codes[i])) * scale * factor);
    } else if constexpr (kind == INT4) {
        int64_t width = (b + 1) / 2, pairs = b / 2;
        float* R high = out + width;
        for (int64_t j = 0; j < width; j++)
            put<add>(out + j, float(int32_t(uint32_t(codes[j]) << 28) >> 28) * scale * factor);
        for (int64_t j = 0; j < pairs; j++)
            put<add>(high + j, float(int32_t(uint32_t(codes[j]) << 24) >> 28) * scale * factor);
    } else {
        int64_t width = (b + 7) / 8;
        uint32_t s = bits_of(scale);
        for (int64_t k = 0; k * width < b; k++) {
            int64_t end = b - k * width < width ? b - k * width : width;
            float* R part = out + k * width;
            for (int64_t j = 0; j < end; j++)
                put<add>(part + j, float_of(s ^ (uint32_t(codes[j] >> k) << 31)) * factor);
        }
    }
}

// Codecs of float types: each number by itself.

constexpr int64_t width_of(Kind kind) { return kind == RAW ? 4 : 2; }

// One number, halves to even. Not by _Float16 on x86, which g++ has from 12 on only.
INLINE uint16_t half_of(float x) {
#if defined(__F16C__)
    return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    _Float16 h = _Float16(x);
    uint16_t b;
    memcpy(&b, &h, 2);
    return b;
#else
    uint32_t b = bits_of(x), sign = b & 0x80000000;
    b ^= sign;
    if (b >= (127 + 16) << 23)  // 65536 or more
        b = b > INFINITE ? NAN_FP16 : 0x7c00;
    else if (b < (127 - 14) << 23)  // a subnormal: the sum has its bits at the end
        b = bits_of(float_of(b) + 0.5f) - bits_of(0.5f);
    else
        b = (b - ((127 - 15) << 23) + 0xfff + ((b >> 13) & 1)) >> 13;
    return uint16_t(b | sign >> 16);
#endif
}
INLINE float float_of_half(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    _Float16 x;
    memcpy(&x, &h, 2);
    return float(x);
#else
    uint32_t sign = uint32_t(h & 0x8000) << 16, b = uint32_t(h & 0x7fff) << 13;
    if (b >= 0x7c00 << 13)  // not finite; NaN is quiet
        return float_of(sign | INFINITE | b | uint32_t((h & 0x3ff) != 0) << 22);
    if (b < 0x400 << 13)  // a subnormal, or zero
        return float_of(sign | bits_of(float(h & 0x7fff) * 0x1p-24f));
    return float_of(sign | (b + ((127 - 15) << 23)));
#endif
}

INLINE void to_fp16(const float* R v, int64_t n, uint16_t* R codes) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i*)(codes + i),
                            _mm512_cvtps_ph(_mm512_loadu_ps(v + i), _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i*)(codes + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(v + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) codes[i] = half_of(v[i]);
}

INLINE void from_fp16(const uint16_t* R codes, int64_t n, float* R out) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(codes + i))));
#endif
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(codes + i))));
#endif
    for (; i < n; i++) out[i] = float_of_half(codes[i]);
}

template <Kind kind>
INLINE void widen(const uint8_t* R codes, int64_t n, float* R out) {
    if constexpr (kind == RAW)
        memcpy(out, codes, size_t(n) * 4);
    else if constexpr (kind == FP16)
        from_fp16((const uint16_t*)codes, n, out);
    else
        for (int64_t i = 0; i < n; i++) out[i] = load_bf16(codes + 2 * i);
}

// Returns whether all are finite in the shorter type.
template <Kind kind>
INLINE bool narrow(const float* R v, int64_t n, uint8_t* R codes) {
    if constexpr (kind == RAW) {
        memcpy(codes, v, size_t(n) * 4);
        return absmax_bits(v, n) < INFINITE;
    } else {
        uint16_t* R short_codes = (uint16_t*)codes;
        constexpr uint16_t infinite = kind == FP16 ? 0x7c00 : 0x7f80;
        if constexpr (kind == FP16)
            to_fp16(v, n, short_codes);
        else
            for (int64_t i = 0; i < n; i++) short_codes[i] = to_bf16(v[i]);
        uint16_t most = 0;
        for (int64_t i = 0; i < n; i++) {
            uint16_t b = short_codes[i] & 0x7fff;
            most = b > most ? b : most;
        }
        if (kind == FP16 && most > infinite)
            for (int64_t i = 0; i < n; i++)
                if ((short_codes[i] & 0x7fff) > infinite) short_codes[i] = NAN_FP16;
        return most < infinite;
    }
}

}  // namespace
