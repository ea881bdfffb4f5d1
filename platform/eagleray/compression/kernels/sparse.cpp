// Sparse payloads for one CPU core, with the bits of kernels/sparse.py: see there for their layout.
//
// A unit's numbers are added up, and those above a threshold noted, in one pass over memory. The threshold
// begins a little below what the step before ended with, and rises when too many are found; only where they
// are too few there is a second pass.

#include <algorithm>
#include <functional>
#include <vector>

#include "blocks.h"

namespace {

enum { GRADIENT, FLAT, NUMEL, PAYLOAD, PARAMETER, COUNT, STRIDE, COLUMNS };
enum { UNUSED, USED, BAD };

constexpr int64_t TILE = 4096, HEAD = 8, OUT_OF_BOUNDS = -2;
constexpr int64_t WINDOW = 16 * TILE;  // numbers that stay in the second-level cache
constexpr int64_t PIECE = 1024;        // of three tensors, in the first-level cache
constexpr int64_t AHEAD = 24;          // numbers that are fetched early where the next is a cache line away
constexpr float LEAST_SCALE = 0x1p-100f, SMALLEST = 0x1p-149f;
constexpr float CARRIED = 0.9f;  // of the least magnitude sent, where the next step's search begins
constexpr uint32_t MAGNITUDE = 0x7fffffff, NOT_A_NUMBER = 0x7fc00000;

struct Unit {
    int64_t gradient, flat, numel, payload, parameter, count, stride;
    int64_t wide, codes, bytes;  // of gaps: bytes of one, how many; of the payload

    explicit Unit(const int64_t* row)
        : gradient(row[GRADIENT]),
          flat(row[FLAT]),
          numel(row[NUMEL]),
          payload(row[PAYLOAD]),
          parameter(row[PARAMETER]),
          count(row[COUNT]),
          stride(row[STRIDE] * TILE) {
        int64_t narrow = count + (numel - count) / 0xff, wider = count + (numel - count) / 0xffff;
        wide = narrow <= 2 * wider ? 1 : 2;
        codes = wide == 1 ? narrow : wider;
        bytes = (HEAD + 2 * count + wide * codes + 7) / 8 * 8;
    }
    int64_t at(int64_t i) const { return i / TILE * stride + i % TILE; }
    int64_t end() const { return at(numel - 1) + 1; }

    // Calls f(place of the tile's first, where that lies, how many) for each tile.
    template <typename F>
    void each(F f) const {
        for (int64_t i = 0; i < numel; i += TILE) f(i, at(i), numel - i < TILE ? numel - i : TILE);
    }
};

struct Sizes {
    int64_t gradient, flat, payload, parameters;
};  // negative: there is none

bool fits(const int64_t* units, int64_t U, Sizes sizes) {
    for (const int64_t* row = units; row < units + U * COLUMNS; row += COLUMNS) {
        if (row[COUNT] < 1 || row[COUNT] > row[NUMEL] || row[STRIDE] < 0 || row[GRADIENT] < 0 ||
            row[FLAT] < 0 || row[PAYLOAD] < 0 || row[PAYLOAD] % 8 || row[PARAMETER] < 0 ||
            row[NUMEL] > 0xffffffff)
            return false;
        Unit u(row);
        if (sizes.gradient >= 0 && u.gradient + u.end() > sizes.gradient) return false;
        if (sizes.flat >= 0 && u.flat + u.end() > sizes.flat) return false;
        if (u.payload + u.bytes > sizes.payload) return false;
        if (sizes.parameters >= 0 && u.parameter >= sizes.parameters) return false;
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------
// Selection. Buffers grow to what a model needs and stay: fresh memory costs more than the work.

// Appends those of v [16] that reach the threshold, and their places; returns how many. Writes up to 16.
INLINE int64_t append_16(const float* R v, float threshold, uint32_t first, uint32_t* R index,
                         float* R value) {
    uint32_t mask = mask_16(v, threshold);
#if defined(__AVX512F__)
    // No branch: which of them reach it cannot be foreseen, and a wrong guess costs more than all of this.
    __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i places = _mm512_add_epi32(_mm512_set1_epi32(int(first)), lanes);
    _mm512_storeu_si512(index, _mm512_maskz_compress_epi32(__mmask16(mask), places));
    _mm512_storeu_ps(value, _mm512_maskz_compress_ps(__mmask16(mask), _mm512_loadu_ps(v)));
    return __builtin_popcount(mask);
#else
    int64_t n = 0;
    for (; mask; mask &= mask - 1) {
        int j = __builtin_ctz(mask);
        index[n] = first + uint32_t(j);
        value[n++] = v[j];
    }
    return n;
#endif
}

// The largest so far of the numbers shown, ascending by place, and what others must reach to count.
struct Found {
    std::vector<uint32_t> index;
    std::vector<float> value;
    std::vector<uint32_t> magnitude;
    int64_t wanted = 0, count = 0, room = 0;
    float threshold = 0;
    uint32_t lowest = 0;  // no magnitude here has smaller bits

    void start(const Unit& u, float from) {
        wanted = u.count;
        count = 0;
        room = std::min(u.numel, 4 * u.count + 1024);
        threshold = from;
        lowest = bits_of(from);
        if (int64_t(index.size()) < room + 16) {
            index.resize(size_t(room + 16));
            value.resize(size_t(room + 16));
            magnitude.resize(size_t(room + 16));
        }
    }
    // Note those of v [n] that may be among the largest; `first` is the place of v[0].
    void look(const float* v, int64_t n, int64_t first) {
        uint32_t* places = index.data();
        float* numbers = value.data();
        int64_t end = count;
        for (int64_t i = 0; i < n; i += 16) {
            alignas(64) float rest[16];
            const float* from = v + i;
            if (n - i < 16) {
                std::fill(rest, rest + 16, float_of(NOT_A_NUMBER));  // reaches no threshold
                memcpy(rest, from, size_t(n - i) * 4);
                from = rest;
            }
            end += append_16(from, threshold, uint32_t(first + i), places + end, numbers + end);
            if (end <= room) continue;
            count = end;
            keep_wanted();
            end = count;
        }
        count = end;
    }
    // Forget all but the `wanted` largest, of equal ones the later; returns the least magnitude kept.
    float keep_wanted() {
        int64_t equal;
        uint32_t least = least_wanted(&equal);
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {  // no branch, as above
            float v = value[size_t(i)];
            uint32_t b = bits_of(v) & MAGNITUDE;
            index[size_t(kept)] = index[size_t(i)];
            value[size_t(kept)] = v;
            kept += (b > least) | ((b == least) & (equal > 0));
            equal -= b == least;
        }
        count = kept;
        lowest = least;
        threshold = float_of(least + 1);  // an equal one that comes later would be forgotten
        return float_of(least);
    }
    // The bits of the `wanted`-th largest magnitude, and how many of those equal to it are among the wanted.
    // Counted by their leading bits first, so that only the few that share its are sorted.
    uint32_t least_wanted(int64_t* equal) {
        constexpr int BINS = 2048;
        uint32_t bins[BINS] = {};
        uint32_t range = (absmax_bits(value.data(), count) - lowest) | 1;
        int shift = std::max(0, 21 - __builtin_clz(range));
        auto bin_of = [=](float v) { return ((bits_of(v) & MAGNITUDE) - lowest) >> shift; };
        for (int64_t i = 0; i < count; i++) bins[bin_of(value[size_t(i)])]++;
        int64_t left = wanted;
        uint32_t bin = range >> shift;
        for (; left > bins[bin]; bin--) left -= bins[bin];
        uint32_t* sharing = magnitude.data();
        for (int64_t i = 0; i < count; i++) {
            *sharing = bits_of(value[size_t(i)]) & MAGNITUDE;
            sharing += bin_of(value[size_t(i)]) == bin;
        }
        auto from = magnitude.begin();
        std::nth_element(from, from + (left - 1), from + bins[bin], std::greater<uint32_t>());
        uint32_t least = from[left - 1];
        *equal = left - std::count_if(from, from + left, [=](uint32_t b) { return b > least; });
        return least;
    }
};

thread_local Found found;
thread_local std::vector<float> sums, values;

// Leaves in `found` those of v that are sent; all of it has been shown to it. Returns their least magnitude.
float choose(const Unit& u, const float* v, int64_t stride) {
    if (found.count < u.count) {  // the threshold was too high
        found.start(u, 0.0f);
        for (int64_t i = 0; i < u.numel; i += TILE)
            found.look(v + i / TILE * stride, std::min(TILE, u.numel - i), i);
    }
    if (found.count < u.count) {  // some are no numbers, as in a spoilt checkpoint: the first will do
        for (int64_t i = 0; i < u.count; i++) {
            found.index[size_t(i)] = uint32_t(i);
            found.value[size_t(i)] = v[i / TILE * stride + i % TILE];
        }
        return 0.0f;
    }
    return found.keep_wanted();
}

// ---------------------------------------------------------------------------------------------------
// Payloads.

void clear(const Unit& u, uint8_t* payload, uint32_t scale) {
    memset(payload, 0, size_t(u.bytes));
    memcpy(payload, &scale, 4);
    memset(payload + HEAD + 2 * u.count, 0xff, size_t(u.wide * u.codes));
}

template <typename Gap>
void write_gaps(const Unit& u, uint8_t* payload) {
    constexpr int64_t most = Gap(-1);
    Gap* codes = (Gap*)(payload + HEAD + 2 * u.count);
    Gap* end = codes + u.codes;
    int64_t next = 0;
    for (int64_t i = 0; i < u.count; i++) {
        int64_t gap = int64_t(found.index[size_t(i)]) - next;
        for (; gap >= most; gap -= most) *codes++ = Gap(most);
        *codes++ = Gap(gap);
        next = int64_t(found.index[size_t(i)]) + 1;
    }
    for (; codes < end; codes++) *codes = Gap(most);
}

// Writes what is in `found`; afterwards `values` has what each code stands for.
void write(const Unit& u, uint8_t* payload) {
    uint32_t most = absmax_bits(found.value.data(), u.count);
    float scale = float_of(most & 0x7f800000) * 0x1p-14f;
    scale = scale < LEAST_SCALE ? LEAST_SCALE : scale;
    float inverse = 1.0f / scale;
    if (int64_t(values.size()) < u.count) values.resize(size_t(u.count));
    float* R v = values.data();
    const float* R from = found.value.data();
    for (int64_t i = 0; i < u.count; i++) v[i] = from[i] * inverse;
    uint16_t* codes = (uint16_t*)(payload + HEAD);
    to_fp16(v, u.count, codes);
    from_fp16(codes, u.count, v);
    for (int64_t i = 0; i < u.count; i++) v[i] *= scale;
    memset(payload, 0, size_t(HEAD));
    memcpy(payload, &scale, 4);
    u.wide == 1 ? write_gaps<uint8_t>(u, payload) : write_gaps<uint16_t>(u, payload);
    int64_t used = HEAD + 2 * u.count + u.wide * u.codes;
    memset(payload + used, 0, size_t(u.bytes - used));
}

// Reads one payload from front to back.
template <typename Gap>
struct Reader {
    const uint16_t* values;
    const Gap *code, *end;
    float factor;
    int64_t next = 0, left;  // the number behind the last one read; how many may follow

    Reader(const Unit& u, const uint8_t* payload, float factor)
        : values((const uint16_t*)(payload + HEAD)), code((const Gap*)(payload + HEAD + 2 * u.count)),
          end(code + u.codes), factor(factor), left(u.count) {}

    // Adds the numbers before `until` to out[number].
    void add(int64_t until, float* out) {
        constexpr Gap most = Gap(-1);
        for (; code < end && next + *code < until; code++) {
            next += *code;
            if (*code == most) continue;
            if (--left < 0) {
                code = end;
                return;
            }
            float wide;
            from_fp16(values++, 1, &wide);
            out[next++] += wide * factor;
        }
    }
    bool is_done() const {
        return left >= 0 && std::all_of(code, end, [](Gap gap) { return gap == Gap(-1); });
    }
};

INLINE float scale_of(const uint8_t* payload) {
    float scale;
    memcpy(&scale, payload, 4);
    return scale;
}

// out = factor * the payloads' sum, in their order, a window that fits the cache at a time; its tiles lie
// `stride` apart. Returns whether all payloads were whole.
template <typename Gap>
bool sum_up(const Unit& u, const uint8_t* const* payloads, int64_t n, float factor, float* out,
            int64_t stride) {
    std::vector<Reader<Gap>> readers;
    bool is_bad = false;
    for (int64_t r = 0; r < n; r++) {
        float scale = scale_of(payloads[r] + u.payload);
        readers.emplace_back(u, payloads[r] + u.payload, scale * factor);
        is_bad |= scale != scale;
    }
    float filler = is_bad ? float_of(NOT_A_NUMBER) : 0.0f;
    for (int64_t first = 0; first < u.numel; first += WINDOW) {
        int64_t until = std::min(first + WINDOW, u.numel);
        if (stride == TILE) {
            std::fill(out + first, out + until, filler);
            for (auto& reader : readers) reader.add(until, out);
            continue;
        }
        for (int64_t i = first; i < until; i += TILE) {
            int64_t size = std::min(TILE, until - i);
            float* to = out + i / TILE * stride;
            std::fill(to, to + size, filler);
            for (auto& reader : readers) reader.add(i + size, to - i);
        }
    }
    return std::all_of(readers.begin(), readers.end(), [](const Reader<Gap>& r) { return r.is_done(); });
}

bool sum_up(const Unit& u, const uint8_t* const* payloads, int64_t n, float factor, float* out,
            int64_t stride) {
    return u.wide == 1 ? sum_up<uint8_t>(u, payloads, n, factor, out, stride)
                       : sum_up<uint16_t>(u, payloads, n, factor, out, stride);
}

INLINE void accumulate(const float* R g, float* R kept, int64_t n, float gain) {
    for (int64_t i = 0; i < n; i++) kept[i] += g[i] * gain;
}

INLINE void accumulate(const float* R g, float* R kept, float* R momentum, int64_t n, float gain,
                       float beta) {
    for (int64_t i = 0; i < n; i++) {
        float m = momentum[i] * beta + g[i] * gain;
        momentum[i] = m;
        kept[i] += m;
    }
}

}  // namespace

// Each returns 0, or OUT_OF_BOUNDS: a unit leaves one of the tensors, or a payload its unit.
EXPORT int64_t eagleray_sparse_encode(const float* gradient, const int64_t* units, int64_t U,
                                      uint8_t* payload, float* residual, float* momentum, float* thresholds,
                                      const uint8_t* states, const int64_t* sizes, float gain, float beta) {
    if (!fits(units, U, {sizes[0], sizes[1], sizes[2], sizes[3]})) return OUT_OF_BOUNDS;
    for (int64_t n = 0; n < U; n++) {
        Unit u(units + n * COLUMNS);
        const float* g = gradient + u.gradient;
        uint8_t* to = payload + u.payload;
        uint8_t state = states[u.parameter];
        if (state != USED) {
            clear(u, to, state == BAD ? NOT_A_NUMBER : 0);
            continue;
        }
        float* kept = residual + u.flat;
        float* m = momentum ? momentum + u.flat : nullptr;
        found.start(u, thresholds[n]);
        u.each([&](int64_t i, int64_t at, int64_t size) {
            for (int64_t j = 0; j < size; j += PIECE) {
                int64_t n = std::min(PIECE, size - j);
                if (m)
                    accumulate(g + at + j, kept + at + j, m + at + j, n, gain, beta);
                else
                    accumulate(g + at + j, kept + at + j, n, gain);
                found.look(kept + at + j, n, i + j);
            }
        });
        float least = choose(u, kept, u.stride) * CARRIED;
        thresholds[n] = least > SMALLEST ? least : SMALLEST;
        write(u, to);
        for (int64_t i = 0; i < u.count; i++) {
            int64_t ahead = u.at(found.index[size_t(std::min(i + AHEAD, u.count - 1))]);
            __builtin_prefetch(kept + ahead, 1);
            if (m) __builtin_prefetch(m + ahead, 1);
            int64_t at = u.at(found.index[size_t(i)]);
            kept[at] -= values[size_t(i)];
            if (m) m[at] = 0.0f;
        }
    }
    return 0;
}

EXPORT int64_t eagleray_sparse_decode(const uint8_t* const* payloads, int64_t n, const int64_t* units,
                                      int64_t U, float* out, const int64_t* sizes, float factor) {
    if (!fits(units, U, {sizes[0], sizes[1], sizes[2], sizes[3]})) return OUT_OF_BOUNDS;
    for (const int64_t* row = units; row < units + U * COLUMNS; row += COLUMNS) {
        Unit u(row);
        if (!sum_up(u, payloads, n, factor, out + u.gradient, u.stride)) return OUT_OF_BOUNDS;
    }
    return 0;
}

EXPORT int64_t eagleray_sparse_reduce(const uint8_t* const* payloads, int64_t n, const int64_t* units,
                                      int64_t U, uint8_t* payload, float* residual, const int64_t* sizes) {
    if (!fits(units, U, {sizes[0], sizes[1], sizes[2], sizes[3]})) return OUT_OF_BOUNDS;
    for (const int64_t* row = units; row < units + U * COLUMNS; row += COLUMNS) {
        Unit u(row);
        if (int64_t(sums.size()) < u.numel) sums.resize(size_t(u.numel));
        float* total = sums.data();
        if (!sum_up(u, payloads, n, 1.0f, total, TILE)) return OUT_OF_BOUNDS;
        bool is_bad = std::any_of(payloads, payloads + n, [&](const uint8_t* each) {
            float scale = scale_of(each + u.payload);
            return scale != scale;
        });
        if (is_bad) {
            clear(u, payload + u.payload, NOT_A_NUMBER);
            continue;
        }
        found.start(u, SMALLEST);
        found.look(total, u.numel, 0);
        choose(u, total, TILE);
        write(u, payload + u.payload);
        for (int64_t i = 0; i < u.count; i++) total[found.index[size_t(i)]] -= values[size_t(i)];
        float* kept = residual + u.flat;
        u.each([&](int64_t i, int64_t at, int64_t size) {
            for (int64_t j = 0; j < size; j++) kept[at + j] += total[i + j];
        });
    }
    return 0;
}
