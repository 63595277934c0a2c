// Bilinear resize of 8-bit pictures with a filter as wide as the reduction: to the bit what Pillow
// gives where it does columns first. Weights are fixed point of 22 bits, columns come before rows,
// and each of the two passes rounds to 8 bits.
//
// Pixels come with four bytes each (RGBX) and leave with three (RGB). Four rows of the source go
// through the first pass at a time, interleaved: both passes work on whole vectors then.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kBits = 22;
constexpr int32_t kHalf = 1 << (kBits - 1);
constexpr int kRows = 4;             // of the source, at a time
constexpr int kPixels = 4;           // of one row, at a time
constexpr int kLanes = 4 * kPixels;  // bytes of a vector

// Which places of the source each place of the result is made of, and their weights.
struct Filter {
    std::vector<int64_t> first;
    std::vector<int32_t> count, weights;
    size_t width;  // weights of one place

    Filter(int64_t from, int64_t to)
        : first(to), count(to), width(2 * static_cast<size_t>(std::ceil(reach(from, to))) + 1) {
        weights.resize(to * width);
        std::vector<double> exact(width);
        const double scale = static_cast<double>(from) / static_cast<double>(to);
        const double narrow = 1.0 / reach(from, to);
        for (int64_t place = 0; place < to; ++place) {
            const double center = (static_cast<double>(place) + 0.5) * scale;
            const auto begin = static_cast<int64_t>(std::max(0.0, center - reach(from, to) + 0.5));
            const auto end = std::min(from, static_cast<int64_t>(center + reach(from, to) + 0.5));
            double sum = 0.0;
            for (int64_t i = begin; i < end; ++i) {
                const double far = std::fabs((static_cast<double>(i) - center + 0.5) * narrow);
                exact[i - begin] = far < 1.0 ? 1.0 - far : 0.0;
                sum += exact[i - begin];
            }
            first[place] = begin;
            count[place] = static_cast<int32_t>(end - begin);
            for (int64_t i = 0; i < end - begin; ++i)
                weights[place * width + i] =
                    static_cast<int32_t>(0.5 + exact[i] / sum * (1 << kBits));
        }
    }

  private:
    static double reach(int64_t from, int64_t to) {
        return std::max(1.0, static_cast<double>(from) / static_cast<double>(to));
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

// Places lie `stride` bytes apart, sixteen bytes of each are weighed.
inline void weigh(const uint8_t* at, size_t stride, const int32_t* weights, int32_t count,
                  void* result) {
    Sums sums;
    for (int32_t i = 0; i < count; ++i) sums.add(at + i * stride, weights[i]);
    sums.store(result);
}

// Four pixels of four rows each: [row][pixel] to [pixel][row].
struct Block {
    alignas(kLanes) uint8_t rows[kRows][kLanes];
};

inline void store_transposed(const Block& block, uint8_t* to) {
#if defined(__AVX2__)
    const auto* rows = reinterpret_cast<const __m128i*>(&block);
    const __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]), b = _mm_unpackhi_epi32(rows[0], rows[1]);
    const __m128i c = _mm_unpacklo_epi32(rows[2], rows[3]), d = _mm_unpackhi_epi32(rows[2], rows[3]);
    auto* pixels = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(pixels + 0, _mm_unpacklo_epi64(a, c));
    _mm_storeu_si128(pixels + 1, _mm_unpackhi_epi64(a, c));
    _mm_storeu_si128(pixels + 2, _mm_unpacklo_epi64(b, d));
    _mm_storeu_si128(pixels + 3, _mm_unpackhi_epi64(b, d));
#else
    for (int row = 0; row < kRows; ++row)
        for (int pixel = 0; pixel < kPixels; ++pixel)
            std::memcpy(to + (pixel * kRows + row) * 4, block.rows[row] + pixel * 4, 4);
#endif
}

class Resize {
  public:
    Resize(const uint8_t* source, int64_t height, int64_t width, int64_t new_height,
           int64_t new_width, uint8_t* result)
        : source_(source),
          height_(height),
          width_(width),
          new_height_(new_height),
          new_width_(new_width),
          result_(result),
          columns_(width, new_width),
          rows_(height, new_height),
          interleaved_(width * kRows * 4),
          stride_((new_width + kPixels - 1) / kPixels * kLanes),
          between_(height * stride_) {}

    void run() {
        for (int64_t y = 0; y < height_; y += kRows) {
            const int64_t rows = std::min<int64_t>(kRows, height_ - y);
            interleave(y, rows);
            across(y, rows);
        }
        for (int64_t y = 0; y < new_height_; ++y) down(y);
    }

  private:
    void interleave(int64_t y, int64_t rows) {
        Block block = {};
        for (int64_t x = 0; x < width_; x += kPixels) {
            const int64_t from = std::min(x, width_ - kPixels);  // the last ones overlap
            for (int64_t row = 0; row < rows; ++row)
                std::memcpy(block.rows[row], source_ + ((y + row) * width_ + from) * 4, kLanes);
            store_transposed(block, interleaved_.data() + from * kRows * 4);
        }
    }

    // Rows of the source, as wide as the result.
    void across(int64_t y, int64_t rows) {
        uint8_t pixels[kLanes];
        for (int64_t x = 0; x < new_width_; ++x) {
            weigh(interleaved_.data() + columns_.first[x] * kRows * 4, kRows * 4,
                  &columns_.weights[x * columns_.width], columns_.count[x], pixels);
            for (int64_t row = 0; row < rows; ++row)
                std::memcpy(between_.data() + (y + row) * stride_ + x * 4, pixels + row * 4, 4);
        }
    }

    // A row of the result.
    void down(int64_t y) {
        uint8_t pixels[kLanes];
        for (int64_t x = 0; x < new_width_; x += kPixels) {
            weigh(between_.data() + rows_.first[y] * stride_ + x * 4, stride_,
                  &rows_.weights[y * rows_.width], rows_.count[y], pixels);
            uint8_t* into = result_ + (y * new_width_ + x) * 3;
            const int64_t count = std::min<int64_t>(kPixels, new_width_ - x);
            for (int64_t pixel = 0; pixel < count; ++pixel)
                std::memcpy(into + pixel * 3, pixels + pixel * 4, 3);
        }
    }

    const uint8_t* const source_;
    const int64_t height_, width_, new_height_, new_width_;
    uint8_t* const result_;
    const Filter columns_, rows_;
    std::vector<uint8_t> interleaved_;  // [width][kRows][4]
    const int64_t stride_;              // bytes of a row between the passes
    std::vector<uint8_t> between_;      // [height][stride]
};

}  // namespace

// source [height][width][4], width at least 4 -> result [new_height][new_width][3].
// Returns 0, or 1 where there is no memory.
extern "C" int lite_detr_resize(const uint8_t* source, int64_t height, int64_t width,
                                int64_t new_height, int64_t new_width, uint8_t* result) {
    try {
        Resize(source, height, width, new_height, new_width, result).run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
