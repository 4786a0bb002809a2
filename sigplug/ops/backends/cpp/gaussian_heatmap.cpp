// Gaussian peaks, drawn directly. See sigplug/ops/gaussian_heatmap.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct Peaks {
  int64_t num;
  const int64_t* centers;  // (num, 2): x, y
  const int64_t* radii;    // below 0: not drawn
  const int64_t* labels;
};

// exp(-d^2 / (2 sigma^2)) for d = 0 ... radius.
void profile(int64_t radius, std::vector<double>& out) {
  const double sigma = (2 * radius + 1) / 6.0;
  out.resize(radius + 1);
  for (int64_t d = 0; d <= radius; ++d) {
    out[d] = std::exp(-double(d) * d / (2 * sigma * sigma));
  }
}

void draw(const std::vector<double>& profile, int64_t x, int64_t y,
          int64_t radius, int64_t height, int64_t width, float* map) {
  const int64_t left = std::max<int64_t>(0, x - radius);
  const int64_t right = std::min(width, x + radius + 1);
  const int64_t top = std::max<int64_t>(0, y - radius);
  const int64_t bottom = std::min(height, y + radius + 1);
  for (int64_t row = top; row < bottom; ++row) {
    const double by_row = profile[std::abs(row - y)];
    float* const cells = map + row * width;
    for (int64_t column = left; column < right; ++column) {
      const double value = by_row * profile[std::abs(column - x)];
      cells[column] = std::max(cells[column], static_cast<float>(value));
    }
  }
}

}  // namespace

// heatmap (classes, height, width), which holds zeros.
extern "C" void gaussian_heatmap(const Peaks* peaks, int64_t height,
                                 int64_t width, float* heatmap, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> values;
    // Each class belongs to one thread: no two write into the same map.
#pragma omp for schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
      for (int64_t k = 0; k < peaks->num; ++k) {
        const int64_t radius = peaks->radii[k], label = peaks->labels[k];
        if (radius < 0 || label % threads != share) continue;
        profile(radius, values);
        draw(values, peaks->centers[2 * k], peaks->centers[2 * k + 1], radius,
             height, width, heatmap + label * height * width);
      }
    }
  }
}
