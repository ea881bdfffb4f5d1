// The codecs of kernels/eager.py for float32 on one CPU core: tables of tiles, with the same bits and bytes.
//
// A plain C interface, called through ctypes, so that it needs no headers of torch or Python and works with
// any version of either. Each block is finished while its numbers are in the first-level cache, so that a
// call reads and writes each number in memory once.

#include "blocks.h"

namespace {

enum { GRADIENT, FLAT, NUMEL, PAYLOAD, PARAMETER, COLUMNS };

constexpr int64_t ALIGN = 8, OUT_OF_BOUNDS = -2;

// ---------------------------------------------------------------------------------------------------

struct Bytes {
    int64_t scales, used, all;
};

template <Kind kind>
INLINE Bytes bytes_of(int64_t numel, int64_t B) {
    int64_t scales = 0, used;
    if constexpr (kind < INT8)
        used = numel * width_of(kind);
    else {
        int64_t full = numel / B, tail = numel % B;
        scales = 2 * (full + (tail > 0));
        used = scales + full * (B / per_byte(kind)) + (tail + per_byte(kind) - 1) / per_byte(kind);
    }
    return {scales, used, (used + ALIGN - 1) / ALIGN * ALIGN};
}

constexpr int64_t CHUNK = 1024;  // numbers of a float codec that are worked on at a time

// Encodes, chunk by chunk, the numbers to which `fill(first, count, room)` points (it may put them into the
// room); returns whether all were finite.
template <Kind kind, bool has_residual, typename Fill>
INLINE bool encode_tile(int64_t numel, int64_t B, uint8_t* payload, float* residual, float keep, float gain,
                        Fill fill) {
    Bytes bytes = bytes_of<kind>(numel, B);
    alignas(64) float room[MAX_BLOCK];
    bool all_good = true;
    uint8_t* scales = payload;
    uint8_t* codes = payload + bytes.scales;
    int64_t step = kind < INT8 ? CHUNK : B;
    for (int64_t i = 0; i < numel; i += step) {
        int64_t b = numel - i < step ? numel - i : step;
        const float* v = fill(i, b, room);
        bool good;
        if constexpr (kind < INT8) {
            good = narrow<kind>(v, b, codes);
            if constexpr (has_residual) {
                alignas(64) float sent[CHUNK];
                widen<kind>(codes, b, sent);
                for (int64_t j = 0; j < b; j++) {
                    float r = residual[i + j], lost = r * keep + (v[j] - sent[j]) * gain;
                    residual[i + j] = (bits_of(sent[j]) & 0x7fffffff) < INFINITE ? lost : r;
                }
            }
            codes += b * width_of(kind);
        } else {
            float scale = block_scale<kind>(v, b, B, &good);
            int64_t width = (b + per_byte(kind) - 1) / per_byte(kind);
            if (good) {
                store_u16(scales, uint16_t(bits_of(scale) >> 16));
                block_codes<kind, has_residual>(v, b, scale, codes, residual + i, keep, gain);
            } else {
                store_u16(scales, NAN_BF16);
                memset(codes, 0, size_t(width));
            }
            scales += 2;
            codes += width;
        }
        all_good &= good;
    }
    memset(payload + bytes.used, 0, size_t(bytes.all - bytes.used));
    return all_good;
}

// Writes, or adds, what the codes of elements i .. i + b of a tile stand for.
template <Kind kind, bool add>
INLINE void decode_part(const uint8_t* R payload, const Bytes& bytes, int64_t i, int64_t b, int64_t B,
                        float factor, float* R out) {
    if constexpr (kind < INT8) {
        const uint8_t* codes = payload + i * width_of(kind);
        if (!add && factor == 1.0f) {
            widen<kind>(codes, b, out);
            return;
        }
        alignas(64) float room[CHUNK];
        const float* R wide = kind == RAW ? (const float*)codes : room;  // at a multiple of ALIGN
        if (kind != RAW) widen<kind>(codes, b, room);
        for (int64_t j = 0; j < b; j++) put<add>(out + j, wide[j] * factor);
    } else {
        float scale = load_bf16(payload + 2 * (i / B));
        block_decode<kind, add>(payload + bytes.scales + i / per_byte(kind), b, scale, factor, out);
    }
}

struct Sizes {
    int64_t gradient, flat, payload, used;
};  // negative: there is none

template <Kind kind>
bool fits(const int64_t* tiles, int64_t K, int64_t B, Sizes sizes) {
    for (const int64_t* tile = tiles; tile < tiles + K * COLUMNS; tile += COLUMNS) {
        int64_t n = tile[NUMEL];
        if (n < 0 || tile[GRADIENT] < 0 || tile[FLAT] < 0 || tile[PAYLOAD] < 0 || tile[PARAMETER] < 0 ||
            tile[PAYLOAD] % ALIGN)
            return false;
        if (sizes.gradient >= 0 && tile[GRADIENT] + n > sizes.gradient) return false;
        if (sizes.flat >= 0 && tile[FLAT] + n > sizes.flat) return false;
        if (tile[PAYLOAD] + bytes_of<kind>(n, B).all > sizes.payload) return false;
        if (sizes.used >= 0 && tile[PARAMETER] >= sizes.used) return false;
    }
    return true;
}

INLINE void note(int64_t* worst, int64_t parameter) {
    if (*worst < 0 || parameter < *worst) *worst = parameter;
}

template <Kind kind>
int64_t encode(int64_t B, const float* source, float* residual, uint8_t* payload, const int64_t* tiles,
               int64_t K, const uint8_t* used, Sizes sizes, float gain_in, float keep, float gain_out) {
    if (!fits<kind>(tiles, K, B, sizes)) return OUT_OF_BOUNDS;
    int64_t bad = -1;
    for (const int64_t* tile = tiles; tile < tiles + K * COLUMNS; tile += COLUMNS) {
        const float* R from = source + tile[GRADIENT];
        uint8_t* to = payload + tile[PAYLOAD];
        int64_t numel = tile[NUMEL];
        bool good = true;
        if (used && !used[tile[PARAMETER]]) {
            memset(to, 0, size_t(bytes_of<kind>(numel, B).all));
        } else if (residual) {
            float* kept = residual + tile[FLAT];
            good = encode_tile<kind, true>(numel, B, to, kept, keep, gain_out,
                                           [=](int64_t i, int64_t b, float* R v) {
                                               for (int64_t j = 0; j < b; j++)
                                                   v[j] = from[i + j] + kept[i + j] * gain_in;
                                               return (const float*)v;
                                           });
        } else {
            good = encode_tile<kind, false>(numel, B, to, nullptr, 0, 0,
                                            [=](int64_t i, int64_t, float*) { return from + i; });
        }
        if (!good) note(&bad, tile[PARAMETER]);
    }
    return bad;
}

template <Kind kind>
int64_t decode(int64_t B, const uint8_t* payload, const int64_t* tiles, int64_t K, float* out, Sizes sizes,
               bool add, float factor) {
    if (!fits<kind>(tiles, K, B, sizes)) return OUT_OF_BOUNDS;
    for (const int64_t* tile = tiles; tile < tiles + K * COLUMNS; tile += COLUMNS) {
        int64_t numel = tile[NUMEL], step = kind < INT8 ? CHUNK : B;
        Bytes bytes = bytes_of<kind>(numel, B);
        for (int64_t i = 0; i < numel; i += step) {
            int64_t b = numel - i < step ? numel - i : step;
            const uint8_t* from = payload + tile[PAYLOAD];
            float* to = out + tile[GRADIENT] + i;
            if (add)
                decode_part<kind, true>(from, bytes, i, b, B, factor, to);
            else
                decode_part<kind, false>(from, bytes, i, b, B, factor, to);
        }
    }
    return -1;
}

template <Kind kind>
int64_t reduce(int64_t B, const uint8_t* const* payloads, int64_t n, const int64_t* tiles, int64_t K,
               uint8_t* payload, float* residual, Sizes sizes, float gain_out) {
    if (!fits<kind>(tiles, K, B, sizes)) return OUT_OF_BOUNDS;
    int64_t bad = -1;
    float share = float(1.0 / double(n));
    for (const int64_t* tile = tiles; tile < tiles + K * COLUMNS; tile += COLUMNS) {
        int64_t numel = tile[NUMEL], at = tile[PAYLOAD];
        Bytes bytes = bytes_of<kind>(numel, B);
        auto mean = [=](int64_t i, int64_t b, float* R v) {
            decode_part<kind, false>(payloads[0] + at, bytes, i, b, B, 1.0f, v);
            for (int64_t r = 1; r < n; r++)
                decode_part<kind, true>(payloads[r] + at, bytes, i, b, B, 1.0f, v);
            for (int64_t j = 0; j < b; j++) v[j] *= share;
            return (const float*)v;
        };
        bool good = residual ? encode_tile<kind, true>(numel, B, payload + at, residual + tile[FLAT], 1.0f,
                                                       gain_out, mean)
                             : encode_tile<kind, false>(numel, B, payload + at, nullptr, 0, 0, mean);
        if (!good) note(&bad, tile[PARAMETER]);
    }
    return bad;
}

}  // namespace

#define DISPATCH(call)         \
    switch (kind) {            \
        case RAW:              \
            return call(RAW);  \
        case FP16:             \
            return call(FP16); \
        case BF16:             \
            return call(BF16); \
        case INT8:             \
            return call(INT8); \
        case INT4:             \
            return call(INT4); \
        default:               \
            return call(SIGN); \
    }

// Each returns the lowest parameter with a block that is not finite, -1, or OUT_OF_BOUNDS (nothing was
// written).
EXPORT int64_t eagleray_encode(int64_t kind, int64_t B, const float* source, float* residual,
                               uint8_t* payload, const int64_t* tiles, int64_t K, const uint8_t* used,
                               const int64_t* sizes, float gain_in, float keep, float gain_out) {
    Sizes s = {sizes[0], sizes[1], sizes[2], sizes[3]};
#define CALL(k) encode<k>(B, source, residual, payload, tiles, K, used, s, gain_in, keep, gain_out)
    DISPATCH(CALL)
#undef CALL
}

EXPORT int64_t eagleray_decode(int64_t kind, int64_t B, const uint8_t* payload, const int64_t* tiles,
                               int64_t K, float* out, const int64_t* sizes, int64_t add, float factor) {
    Sizes s = {sizes[0], sizes[1], sizes[2], sizes[3]};
#define CALL(k) decode<k>(B, payload, tiles, K, out, s, add != 0, factor)
    DISPATCH(CALL)
#undef CALL
}

EXPORT int64_t eagleray_reduce(int64_t kind, int64_t B, const uint8_t* const* payloads, int64_t n,
                               const int64_t* tiles, int64_t K, uint8_t* payload, float* residual,
                               const int64_t* sizes, float gain_out) {
    Sizes s = {sizes[0], sizes[1], sizes[2], sizes[3]};
#define CALL(k) reduce<k>(B, payloads, n, tiles, K, payload, residual, s, gain_out)
    DISPATCH(CALL)
#undef CALL
}
