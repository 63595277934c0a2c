// Bilinear resize of 8-bit images with a filter as wide as the reduction, equal to the bit to
// Pillow's where Pillow does columns first. Weights are 22-bit fixed point, columns come before
// rows, and each of the two passes rounds to 8 bits.
//
// Input pixels have four bytes each (RGBX), output pixels three (RGB). The first pass takes four
// rows of the source at a time, interleaved, so that both passes work on whole vectors. Only the
// rows that the next row of the result needs are kept between the passes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kBits = 22;
constexpr int32_t kHalf = 1 << (kBits - 1);
constexpr int kRows = 4;             // of the source, at a time
constexpr int kPixels = 4;           // of a row, at a time
constexpr int kLanes = 4 * kPixels;  // bytes of a vector

constexpr int64_t up_to_multiple(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

// For each place of the result: the first place of the source that it is computed from, and the
// weights. All have the same number of taps, some with weight 0; the last place is repeated up to a
// multiple of kPixels. `start` and `extent` are the part of the source that the result shows.
struct Filter {
    const int64_t from, to;
    const double start, scale, reach;
    int64_t taps = 0;
    std::vector<int64_t> first;
    std::vector<int32_t> weights;  // [places][taps]

    Filter(int64_t from, double start, double extent, int64_t to)
        : from(from),
          to(to),
          start(start),
          scale(extent / static_cast<double>(to)),
          reach(std::max(1.0, scale)),
          first(up_to_multiple(to, kPixels)) {
        for (int64_t place = 0; place < to; ++place) taps = std::max(taps, end(place) - begin(place));
        weights.resize(first.size() * taps);
        std::vector<double> exact(taps);
        for (int64_t place = 0; place < static_cast<int64_t>(first.size()); ++place)
            weigh(place, exact);
    }

  private:
    double center(int64_t place) const {
        return start + (static_cast<double>(place) + 0.5) * scale;
    }

    int64_t begin(int64_t place) const {
        return static_cast<int64_t>(std::max(0.0, center(place) - reach + 0.5));
    }

    int64_t end(int64_t place) const {
        return std::min(from, static_cast<int64_t>(center(place) + reach + 0.5));
    }

    void weigh(int64_t index, std::vector<double>& exact) {
        const int64_t place = std::min(index, to - 1), before = begin(place), after = end(place);
        const double narrow = 1.0 / reach;
        double sum = 0.0;
        for (int64_t i = before; i < after; ++i) {
            const double far = std::fabs((static_cast<double>(i) - center(place) + 0.5) * narrow);
            exact[i - before] = far < 1.0 ? 1.0 - far : 0.0;
            sum += exact[i - before];
        }
        first[index] = std::min(before, from - taps);
        int32_t* into = &weights[index * taps + before - first[index]];
        for (int64_t i = 0; i < after - before; ++i)
            into[i] = static_cast<int32_t>(0.5 + exact[i] / sum * (1 << kBits));
    }
};

// Sixteen sums of weight x byte.
#if defined(__AVX2__)
class Sums {
  public:
    void add(const uint8_t* at, int32_t weight) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        const __m256i weights = _mm256_set1_epi32(weight);
        low_ = plus(low_, _mm256_cvtepu8_epi32(bytes), weights);
        high_ = plus(high_, _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), weights);
    }

    void store(void* to) const {
        const __m256i low = _mm256_srli_epi32(low_, kBits), high = _mm256_srli_epi32(high_, kBits);
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
        const __m128i bytes =
            _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(static_cast<__m128i*>(to), bytes);
    }

  private:
    static __m256i plus(__m256i sums, __m256i bytes, __m256i weights) {
        return _mm256_add_epi32(sums, _mm256_mullo_epi32(bytes, weights));
    }

    __m256i low_ = _mm256_set1_epi32(kHalf), high_ = _mm256_set1_epi32(kHalf);
};
#else
class Sums {
  public:
    Sums() { std::fill_n(sums_, kLanes, kHalf); }

    void add(const uint8_t* at, int32_t weight) {
#pragma omp simd
        for (int lane = 0; lane < kLanes; ++lane) sums_[lane] += at[lane] * weight;
    }

    void store(void* to) const {
        uint8_t bytes[kLanes];
#pragma omp simd
        for (int lane = 0; lane < kLanes; ++lane)
            bytes[lane] = static_cast<uint8_t>(sums_[lane] >> kBits);
        std::memcpy(to, bytes, kLanes);
    }

  private:
    int32_t sums_[kLanes];
};
#endif

// The weighted sum of sixteen bytes at each of several places.
template <typename At>
inline void weigh(int64_t taps, const int32_t* weights, At at, void* result) {
    Sums sums;
    for (int64_t i = 0; i < taps; ++i) sums.add(at(i), weights[i]);
    sums.store(result);
}

// Four vectors of four pixels each, [row][pixel] or [pixel][row].
struct Block {
    alignas(kLanes) uint8_t rows[kRows][kLanes];
};

inline Block transposed(const Block& block) {
    Block result;
#if defined(__AVX2__)
    const auto* rows = reinterpret_cast<const __m128i*>(&block);
    const __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]), b = _mm_unpackhi_epi32(rows[0], rows[1]);
    const __m128i c = _mm_unpacklo_epi32(rows[2], rows[3]), d = _mm_unpackhi_epi32(rows[2], rows[3]);
    auto* pixels = reinterpret_cast<__m128i*>(&result);
    pixels[0] = _mm_unpacklo_epi64(a, c);
    pixels[1] = _mm_unpackhi_epi64(a, c);
    pixels[2] = _mm_unpacklo_epi64(b, d);
    pixels[3] = _mm_unpackhi_epi64(b, d);
#else
    for (int row = 0; row < kRows; ++row)
        for (int pixel = 0; pixel < kPixels; ++pixel)
            std::memcpy(result.rows[pixel] + row * 4, block.rows[row] + pixel * 4, 4);
#endif
    return result;
}

// The first three of each four bytes; the bytes after them in `rgb` are undefined.
inline void drop_fourth(const uint8_t* pixels, uint8_t* rgb) {
#if defined(__AVX2__)
    const __m128i kept = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(pixels));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rgb), _mm_shuffle_epi8(bytes, kept));
#else
    for (int pixel = 0; pixel < kPixels; ++pixel)
        std::memcpy(rgb + pixel * 3, pixels + pixel * 4, 3);
#endif
}

class Resize {
  public:
    Resize(const uint8_t* source, int64_t height, int64_t width, int64_t new_height,
           int64_t new_width, uint8_t* result, const double* box)
        : source_(source),
          height_(height),
          width_(width),
          new_height_(new_height),
          new_width_(new_width),
          result_(result),
          columns_(width, box[0], box[2] - box[0], new_width),
          rows_(height, box[1], box[3] - box[1], new_height),
          interleaved_(width * kRows * 4),
          stride_(up_to_multiple(new_width, kPixels) * 4),
          kept_(up_to_multiple(rows_.taps + 2 * kRows - 2, kRows)),
          between_(kept_ * stride_),
          places_(rows_.taps) {}

    void run() {
        int64_t ready = 0;  // rows that the first pass has done
        for (int64_t y = 0; y < new_height_; ++y) {
            for (; ready < rows_.first[y] + rows_.taps; ready += kRows) {
                interleave(ready);
                with_taps(columns_.taps, [&](auto taps) { across<taps()>(ready); });
            }
            with_taps(rows_.taps, [&](auto taps) { down<taps()>(y); });
        }
    }

  private:
    // Calls with the number of taps as a constant if it is small, else with 0.
    template <typename Call>
    static void with_taps(int64_t taps, Call call) {
        switch (taps) {
            case 2: return call(std::integral_constant<int, 2>());
            case 3: return call(std::integral_constant<int, 3>());
            case 4: return call(std::integral_constant<int, 4>());
            case 5: return call(std::integral_constant<int, 5>());
            case 6: return call(std::integral_constant<int, 6>());
            default: return call(std::integral_constant<int, 0>());
        }
    }

    uint8_t* between(int64_t row) { return between_.data() + row % kept_ * stride_; }

    void interleave(int64_t y) {
        const uint8_t* rows[kRows];  // the last one is repeated
        for (int64_t row = 0; row < kRows; ++row)
            rows[row] = source_ + std::min(y + row, height_ - 1) * width_ * 4;
        Block block;
        for (int64_t x = 0; x < width_; x += kPixels) {
            const int64_t from = std::min(x, width_ - kPixels);  // the last ones overlap
            for (int row = 0; row < kRows; ++row)
                std::memcpy(block.rows[row], rows[row] + from * 4, kLanes);
            const Block pixels = transposed(block);
            std::memcpy(interleaved_.data() + from * kRows * 4, &pixels, sizeof pixels);
        }
    }

    // The first pass: four rows of the source, made as wide as the result.
    template <int kTaps>
    void across(int64_t y) {
        uint8_t* rows[kRows];
        for (int row = 0; row < kRows; ++row) rows[row] = between(y + row);
        const int64_t taps = kTaps ? kTaps : columns_.taps;
        Block block;
        for (int64_t x = 0; x < stride_ / 4; x += kPixels) {
            for (int64_t pixel = 0; pixel < kPixels; ++pixel) {
                const uint8_t* at = interleaved_.data() + columns_.first[x + pixel] * kRows * 4;
                weigh(
                    taps, &columns_.weights[(x + pixel) * taps],
                    [at](int64_t i) { return at + i * kRows * 4; }, block.rows[pixel]);
            }
            const Block pixels = transposed(block);
            for (int row = 0; row < kRows; ++row)
                std::memcpy(rows[row] + x * 4, pixels.rows[row], kLanes);
        }
    }

    // The second pass: a row of the result.
    template <int kTaps>
    void down(int64_t y) {
        const int64_t taps = kTaps ? kTaps : rows_.taps;
        for (int64_t i = 0; i < taps; ++i) places_[i] = between(rows_.first[y] + i);
        const uint8_t* const* places = places_.data();
        const int32_t* weights = &rows_.weights[y * taps];
        // Copies, as the compiler must assume that a write to the result changes the originals.
        const uint8_t* few_places[kTaps + 1];
        int32_t few_weights[kTaps + 1];
        if (kTaps) {
            std::copy_n(places, kTaps, few_places);
            std::copy_n(weights, kTaps, few_weights);
            places = few_places;
            weights = few_weights;
        }
        uint8_t* into = result_ + y * new_width_ * 3;
        const uint8_t* const end = result_ + new_height_ * new_width_ * 3;
        alignas(kLanes) uint8_t pixels[kLanes];
        for (int64_t x = 0; x < new_width_; x += kPixels, into += kPixels * 3) {
            weigh(taps, weights, [places, x](int64_t i) { return places[i] + x * 4; }, pixels);
            if (into + kLanes <= end) {
                drop_fourth(pixels, into);  // writes beyond the row, which the next row overwrites
            } else {
                uint8_t rgb[kLanes];
                drop_fourth(pixels, rgb);
                std::memcpy(into, rgb, std::min<int64_t>(kPixels, new_width_ - x) * 3);
            }
        }
    }

    const uint8_t* const source_;
    const int64_t height_, width_, new_height_, new_width_;
    uint8_t* const result_;
    const Filter columns_, rows_;
    std::vector<uint8_t> interleaved_;  // [width][kRows][4]
    const int64_t stride_;              // bytes of a row between the passes
    const int64_t kept_;                // rows between the passes
    std::vector<uint8_t> between_;      // [kept][stride]
    std::vector<const uint8_t*> places_;
};

}  // namespace

// source [height][width][4], width at least 4 -> result [new_height][new_width][3], of the part of
// the source in box: left, top, right and bottom, in pixels that need not be whole.
// Returns 0, or 1 if memory ran out.
extern "C" int lite_detr_resize(const uint8_t* source, int64_t height, int64_t width,
                                int64_t new_height, int64_t new_width, uint8_t* result,
                                const double* box) {
    try {
        Resize(source, height, width, new_height, new_width, result, box).run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
