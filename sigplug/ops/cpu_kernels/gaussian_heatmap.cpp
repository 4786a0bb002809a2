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

// The part of an interval around `center` that lies in [0, extent), and
// exp(-d^2 / (2 sigma^2)) for its distances from the centre.
struct Profile {
  int64_t begin, end;
  std::vector<double> values;

  void compute(int64_t center, int64_t radius, int64_t extent) {
    begin = std::max<int64_t>(0, center - radius);
    end = std::min(extent, center + radius + 1);
    const double sigma = (2 * radius + 1) / 6.0;
    values.clear();
    for (int64_t i = begin; i < end; ++i) {
      const double d = static_cast<double>(i - center);
      values.push_back(std::exp(-d * d / (2 * sigma * sigma)));
    }
  }
};

void draw(const Profile& rows, const Profile& columns, int64_t width,
          float* map) {
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const double by_row = rows.values[row - rows.begin];
    float* const cells = map + row * width;
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      const double value = by_row * columns.values[column - columns.begin];
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
    Profile rows, columns;
    // Each class belongs to one thread: no two write into the same map.
#pragma omp for schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
      for (int64_t k = 0; k < peaks->num; ++k) {
        const int64_t radius = peaks->radii[k], label = peaks->labels[k];
        if (radius < 0 || label % threads != share) continue;
        columns.compute(peaks->centers[2 * k], radius, width);
        rows.compute(peaks->centers[2 * k + 1], radius, height);
        draw(rows, columns, width, heatmap + label * height * width);
      }
    }
  }
}
