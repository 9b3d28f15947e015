// A bidirectional LSTM layer on CPU, forward and backward, for XLA's foreign-function interface.
//
//   z[t] = [noise * x[t], h] kernel + bias;   i, f, g, o = split(z)
//   c' = sigmoid(f) c + sigmoid(i) tanh(g);   h' = sigmoid(o) tanh(c')
//
// for t < length only. Rows are sorted by length and divided into tiles. The time loop of a tile ends at
// its longest row, and each step processes only rows with t < length, so that no time is spent on
// padding. Parameter gradients are summed within chains of tiles, then over the chains in order. The
// number of chains does not depend on the number of threads; therefore the results do not either.
//
// Vectors are GCC/Clang vector extensions, without intrinsics. Unit u of the hidden state is lane
// u % LANES of block u / LANES; a panel is the four gates of one block, PANEL numbers wide. Units are
// padded to whole blocks with zero parameters, so that the states of padding units are zero.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

// Floats per vector, and the number of rows whose gates (4 vectors per row) fit into the registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 3;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 3;
#endif
constexpr int GATES = 4, PANEL = GATES * LANES;
constexpr int SAVED = 5;         // per unit and time step: the four activated gates and c'
constexpr int TILE = 32;         // rows per tile
constexpr int DEPTH = 4 * TILE;  // rows per matmul of the kernel gradient
constexpr int MOST_CHAINS = 16;

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Bits __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
// The first `count` floats, then zeros. A loop, since a short memcpy compiles to a slow string instruction.
inline Vector load(const float* from, size_t count) {
  if (count >= LANES) return load(from);
  Vector value{};
  for (size_t k = 0; k < count; k++) value[k] = from[k];
  return value;
}
// Fetches `count` floats into the second-level cache; they are used after the next matmuls.
inline void prefetch(const float* from, size_t count) {
  for (size_t k = 0; k < count; k += 64 / sizeof(float)) __builtin_prefetch(from + k, 0, 2);
}
inline Vector all(float value) { return value - Vector{}; }
inline Vector choose(Bits where, Vector one, Vector other) {
  return (Vector)((where & (Bits)one) | (~where & (Bits)other));
}

// exp(x) for x clamped to [-87, 87], with x = n log 2 + r and a polynomial in r (Cephes, expf).
inline Vector exponential(Vector x) {
  x = choose(x < all(-87.f), all(-87.f), choose(x > all(87.f), all(87.f), x));
  const Vector shifted = x * 1.44269504f + 12582912.f;  // the last bits of the sum are round(x / log 2)
  const Vector n = shifted - 12582912.f;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
  return (Vector)((Bits)p + ((Bits)shifted << 23));
}

// sigmoid and tanh propagate NaN, which `exponential` does not.
inline Vector sigmoid(Vector x) { return choose(x == x, 1.f / (1.f + exponential(-x)), x); }

inline Vector tanh(Vector x) {
  const Vector far = 1.f - 2.f / (1.f + exponential(x + x));
  const Vector s = x * x;  // the polynomial avoids cancellation near zero (Cephes, tanhf)
  Vector p = s * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  return choose(s < all(0.390625f), p * s * x + x, choose(x == x, far, x));
}

// An array that is aligned for vectors and initialised with zeros.
class Array {
 public:
  explicit Array(size_t size) {
    const size_t bytes = (std::max<size_t>(size, 1) * sizeof(float) + 63) / 64 * 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
  }
  float* at(size_t index = 0) const { return data_.get() + index; }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
};

// sums[R][PANEL] += left[R][depth] right[depth][PANEL]; with `transposed`, left is [depth][R].
template <int R, bool transposed = false>
inline __attribute__((always_inline)) void multiply(const float* left, size_t stride,
                                                    const float* right, size_t depth,
                                                    Vector (&sums)[R][GATES]) {
  for (size_t k = 0; k < depth; k++, right += PANEL) {
    Vector columns[GATES];
#pragma GCC unroll 4
    for (int g = 0; g < GATES; g++) columns[g] = load(right + g * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Vector value = all(transposed ? left[k * stride + r] : left[r * stride + k]);
#pragma GCC unroll 4
      for (int g = 0; g < GATES; g++) sums[r][g] += value * columns[g];
    }
  }
}

// Calls Work<min(n, R)>::run, so that every number of rows up to ROWS has a compiled loop.
template <template <int> class Work, int R = ROWS, class... Arguments>
inline void for_rows(int n, Arguments... arguments) {
  if constexpr (R == 1) {
    Work<1>::run(arguments...);
  } else {
    if (n >= R)
      Work<R>::run(arguments...);
    else
      for_rows<Work, R - 1>(n, arguments...);
  }
}

// One block of the input projection of z, for R tokens: z = bias + read panel.
template <int R>
struct Project {
  static void run(const float* read, size_t width, const float* panel, size_t depth, const float* bias,
                  float* to, size_t to_stride) {
    Vector z[R][GATES];
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GATES; g++) z[r][g] = load(bias + g * LANES);
    multiply<R>(read, width, panel, depth, z);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GATES; g++) store(to + r * to_stride + g * LANES, z[r][g]);
  }
};

// One time step of one block of units, for R rows; z is initialised with `start`.
template <int R>
struct StepForward {
  static void run(const float* read, size_t width, const float* panel, size_t depth,
                  const float* start, size_t start_stride, float* c, float* h, size_t units,
                  float* saved, size_t saved_stride) {
    Vector z[R][GATES];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int g = 0; g < GATES; g++) z[r][g] = load(start + r * start_stride + g * LANES);
    multiply<R>(read, width, panel, depth, z);
    for (int r = 0; r < R; r++) {
      const Vector i = sigmoid(z[r][0]), f = sigmoid(z[r][1]), g = tanh(z[r][2]), o = sigmoid(z[r][3]);
      const Vector cell = f * load(c + r * units) + i * g;
      store(c + r * units, cell);
      store(h + r * units, o * tanh(cell));
      if (!saved) continue;
      float* to = saved + r * saved_stride;
      const Vector kept[SAVED] = {i, f, g, o, cell};
      for (int k = 0; k < SAVED; k++) store(to + k * LANES, kept[k]);
    }
  }
};

// One panel of d_read = d_z kernel^T, the gradient of [x, h], for R rows.
template <int R>
struct ReadBackward {
  static void run(const float* d_z, size_t blocks, const float* panel, float* d_read) {
    Vector sums[R][GATES] = {};
    for (size_t j = 0; j < blocks; j++)
      multiply<R>(d_z + j * DEPTH * PANEL, PANEL, panel + j * PANEL * PANEL, PANEL, sums);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GATES; g++) store(d_read + r * PANEL + g * LANES, sums[r][g]);
  }
};

// R rows of one panel of the kernel gradient: d_kernel += read^T d_z.
template <int R>
struct KernelBackward {
  static void run(const float* read, size_t width, const float* d_z, size_t depth, float* d_kernel) {
    Vector sums[R][GATES];
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GATES; g++) sums[r][g] = load(d_kernel + r * PANEL + g * LANES);
    multiply<R, true>(read, width, d_z, depth, sums);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GATES; g++) store(d_kernel + r * PANEL + g * LANES, sums[r][g]);
  }
};

// The arguments of the handlers, and the layout of their arrays.
struct Layer {
  size_t steps, batch, inputs, hidden;
  size_t blocks, units, width, tiles;  // units: hidden, rounded up to whole blocks; width: inputs + units
  const float *x, *kernel, *bias, *noise;
  const float* projected = nullptr;  // [tokens][batch][2][GATES * hidden]: precomputed input projection, or null
  const int32_t* position = nullptr;    // [steps][batch]: index of the token, or null
  std::vector<size_t> row, length;   // rows sorted by decreasing length, and their lengths

  Layer(const Floats& x_, const Ints& lengths, const Floats& kernel_, const Floats& bias_,
        const Floats& noise_)
      : steps(x_.dimensions()[0]), batch(x_.dimensions()[1]), inputs(x_.dimensions()[2]),
        hidden(bias_.dimensions()[1] / GATES), blocks((hidden + LANES - 1) / LANES),
        units(blocks * LANES), width(inputs + units), tiles((batch + TILE - 1) / TILE),
        x(x_.typed_data()), kernel(kernel_.typed_data()), bias(bias_.typed_data()),
        noise(noise_.element_count() ? noise_.typed_data() : nullptr), row(batch), length(batch) {
    sort(lengths.typed_data());
  }
  // With precomputed input projections, biases included, instead of inputs.
  Layer(const Floats& projected_, const Ints& positions, const Ints& lengths, const Floats& kernel_)
      : steps(positions.dimensions()[0]), batch(positions.dimensions()[1]), inputs(0),
        hidden(kernel_.dimensions()[1]), blocks((hidden + LANES - 1) / LANES), units(blocks * LANES),
        width(units), tiles((batch + TILE - 1) / TILE), x(nullptr), kernel(kernel_.typed_data()),
        bias(nullptr), noise(nullptr), projected(projected_.typed_data()), position(positions.typed_data()),
        row(batch), length(batch) {
    sort(lengths.typed_data());
  }

  void sort(const int32_t* given) {
    std::iota(row.begin(), row.end(), 0);
    std::stable_sort(row.begin(), row.end(), [&](size_t a, size_t b) { return given[a] > given[b]; });
    for (size_t r = 0; r < batch; r++)
      length[r] = std::clamp<int64_t>(given[row[r]], 0, static_cast<int64_t>(steps));
  }
  // The input projection of the token at step t of row b.
  const float* gates(int direction, size_t t, size_t b) const {
    return projected + ((position[t * batch + b] * batch + b) * 2 + direction) * GATES * hidden;
  }

  // The offset in `saved` of one time step of a tile in one direction.
  size_t saved(int direction, size_t tile, size_t t) const {
    const size_t first = tile * TILE, rows = std::min<size_t>(TILE, batch - first);
    return ((direction * batch + first) * steps + t * rows) * SAVED * units;
  }
  const float* kernel_row(int direction, size_t k) const {  // null for a padding unit
    return k < inputs + hidden ? kernel + (direction * (inputs + hidden) + k) * GATES * hidden : nullptr;
  }
  // Writes noise * x[t] of row b to `to`.
  void read(int direction, size_t t, size_t b, float* to) const {
    const float* from = x + (t * batch + b) * inputs;
    if (!noise) {
      std::memcpy(to, from, inputs * sizeof(float));
      return;
    }
    const float* scale = noise + (direction * batch + b) * inputs;
    for (size_t k = 0; k < inputs; k++) to[k] = from[k] * scale[k];
  }
  // Calls work(column, block, position in the panel) for each column of a row of gates.
  template <class Work>
  void for_gates(Work work) const {
    for (size_t g = 0; g < GATES; g++)
      for (size_t u = 0; u < hidden; u++)
        work(g * hidden + u, u / LANES, g * LANES + u % LANES);
  }
};

// Calls work(chain) for every chain from 0 to chains - 1, on at most `threads` threads.
template <class Work>
void in_parallel(int threads, size_t chains, Work work) {
  std::atomic<size_t> next{0};
  std::mutex guard;
  std::exception_ptr failure;
  auto run = [&] {
    try {
      for (size_t chain; (chain = next++) < chains;) work(chain);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    for (size_t i = 1; i < std::min<size_t>(std::max(threads, 1), chains); i++) others.emplace_back(run);
  } catch (const std::system_error&) {  // no more threads available: the running threads do the work
  }
  run();
  for (auto& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

ffi::Error check(const Floats& x, const Ints& lengths, const Floats& kernel, const Floats& bias,
                 const Floats& noise) {
  const auto xs = x.dimensions(), ls = lengths.dimensions(), ks = kernel.dimensions();
  const auto bs = bias.dimensions(), ns = noise.dimensions();
  const bool ranks = xs.size() == 3 && ls.size() == 1 && ks.size() == 3 && bs.size() == 2;
  if (!ranks || bs[1] % GATES || bs[1] < GATES || xs[0] < 1 || xs[1] < 1 || xs[2] < 1)
    return ffi::Error::InvalidArgument("lstm: expected x[t b e], lengths[b], kernel[2 e+h 4h], bias[2 4h]");
  const bool noise_fits = noise.element_count() == 0 ||
                          (ns.size() == 3 && ns[0] == 2 && ns[1] == xs[1] && ns[2] == xs[2]);
  if (ls[0] != xs[1] || ks[0] != 2 || bs[0] != 2 || ks[1] != xs[2] + bs[1] / GATES ||
      ks[2] != bs[1] || !noise_fits)
    return ffi::Error::InvalidArgument("lstm: shapes do not match");
  return ffi::Error::Success();
}

template <class Buffer>
bool has_shape(const Buffer& buffer, std::initializer_list<size_t> shape) {
  const auto found = buffer.dimensions();
  return found.size() == shape.size() &&
         std::equal(shape.begin(), shape.end(), found.begin(),
                    [](size_t a, int64_t b) { return static_cast<int64_t>(a) == b; });
}

int64_t saved_size(int64_t steps, int64_t batch, int64_t hidden) {
  return 2 * batch * steps * SAVED * ((hidden + LANES - 1) / LANES * LANES);
}

// Runs both directions of a layer; fills `saved` for the backward pass unless it is null.
ffi::Error walk(int32_t threads, const Layer& layer, FloatsOut& states_, FloatsOut& last_, float* saved) {
  const size_t inputs = layer.inputs, hidden = layer.hidden, units = layer.units;
  const size_t width = layer.width, blocks = layer.blocks, batch = layer.batch;
  if (!has_shape(*states_, {layer.steps, batch, 2 * hidden}) || !has_shape(*last_, {batch, 2 * hidden}))
    return ffi::Error::InvalidArgument("lstm: a result has the wrong shape");
  float *states = states_->typed_data(), *last = last_->typed_data();

  Array panels(2 * blocks * width * PANEL), biases(2 * blocks * PANEL);
  auto pack = [&](const float* from, float* to, size_t stride) {  // copies a row of gates to its panels
    for (size_t j = 0; j < blocks; j++)
      for (size_t g = 0; g < GATES; g++)
        store(to + j * stride + g * LANES, load(from + g * hidden + j * LANES, hidden - j * LANES));
  };
  for (int direction = 0; direction < 2; direction++) {
    for (size_t k = 0; k < width; k++)
      if (const float* from = layer.kernel_row(direction, k))
        pack(from, panels.at((direction * blocks * width + k) * PANEL), width * PANEL);
    if (layer.bias) pack(layer.bias + direction * GATES * hidden, biases.at(direction * blocks * PANEL), PANEL);
  }

  in_parallel(threads, 2 * layer.tiles, [&](size_t part) {
    const size_t tile = part / 2, direction = part % 2;
    const size_t first = tile * TILE, rows = std::min<size_t>(TILE, batch - first);
    const size_t *row = &layer.row[first], *length = &layer.length[first], steps = length[0];
    const float *panel = panels.at(direction * blocks * width * PANEL), *bias = biases.at(direction * blocks * PANEL);
    Array read(TILE * width), c(TILE * units), h(TILE * units);  // read: noise * x, then h

    // Fewer than ROWS rows do not fill the registers: project the inputs of all time steps first.
    const bool given = layer.projected, ahead = !given && rows < ROWS;
    const size_t skipped = ahead ? inputs : 0, start_size = blocks * PANEL;
    Array projected(ahead ? rows * steps * start_size : 0);  // [rows][steps][start_size]
    Array gates(given ? rows * start_size : 0);              // the input projection at one step
    if (ahead)
      for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < length[r]; t += ROWS) {
          const size_t some = std::min<size_t>(ROWS, length[r] - t);
          for (size_t k = 0; k < some; k++) layer.read(direction, t + k, row[r], read.at(k * width));
          for (size_t j = 0; j < blocks; j++)
            for_rows<Project>(some, read.at(), width, panel + j * width * PANEL, inputs,
                              bias + j * PANEL, projected.at((r * steps + t) * start_size + j * PANEL),
                              start_size);
        }

    size_t n = direction ? 0 : rows;  // number of rows with t < length
    for (size_t step = 0; step < steps; step++) {
      const size_t t = direction ? steps - 1 - step : step;
      if (direction)
        while (n < rows && length[n] > t) n++;
      else
        while (n > 0 && length[n - 1] <= t) n--;
      const size_t next = direction ? t - 1 : t + 1;  // out of range after the last step
      for (size_t r = 0; r < n; r++) {
        const bool last_step = step + 1 == steps || next >= length[r];
        if (given) {
          pack(layer.gates(direction, t, row[r]), gates.at(r * start_size), PANEL);
          if (!last_step) prefetch(layer.gates(direction, next, row[r]), GATES * hidden);
        } else if (!ahead) {
          layer.read(direction, t, row[r], read.at(r * width));
          if (!last_step) prefetch(layer.x + (next * batch + row[r]) * inputs, inputs);
        }
      }
      float* kept = saved ? saved + layer.saved(direction, tile, t) : nullptr;
      const float* start = given ? gates.at() : ahead ? projected.at(t * start_size) : bias;
      const size_t start_stride = given ? start_size : ahead ? steps * start_size : 0;
      for (size_t r = 0; r < n; r += ROWS)
        for (size_t j = 0; j < blocks; j++)
          for_rows<StepForward>(n - r, read.at(r * width + skipped), width,
                                panel + (j * width + skipped) * PANEL, width - skipped,
                                start + r * start_stride + j * PANEL, start_stride,
                                c.at(r * units + j * LANES), h.at(r * units + j * LANES), units,
                                kept ? kept + (r * blocks + j) * SAVED * LANES : nullptr,
                                blocks * SAVED * LANES);
      for (size_t r = 0; r < n; r++) {
        std::memcpy(read.at(r * width + inputs), h.at(r * units), hidden * sizeof(float));
        std::memcpy(states + ((t * batch + row[r]) * 2 + direction) * hidden, h.at(r * units),
                    hidden * sizeof(float));
      }
    }
    for (size_t r = 0; r < rows; r++)
      std::memcpy(last + (row[r] * 2 + direction) * hidden, h.at(r * units), hidden * sizeof(float));
    if (direction) return;
    for (size_t t = length[rows - 1]; t < layer.steps; t++)
      for (size_t r = rows; r-- > 0 && length[r] <= t;)
        std::memset(states + (t * batch + row[r]) * 2 * hidden, 0, 2 * hidden * sizeof(float));
  });
  return ffi::Error::Success();
}

ffi::Error forward(int32_t threads, Floats x, Ints lengths, Floats kernel, Floats bias, Floats noise,
                   FloatsOut states, FloatsOut last, FloatsOut saved) {
  if (auto error = check(x, lengths, kernel, bias, noise); error.failure()) return error;
  const Layer layer(x, lengths, kernel, bias, noise);
  const int64_t size = saved->element_count();
  if (size && size != saved_size(layer.steps, layer.batch, layer.hidden))
    return ffi::Error::InvalidArgument("lstm: saved has the wrong shape");
  return walk(threads, layer, states, last, size ? saved->typed_data() : nullptr);
}

// Encodes a selection of the tokens from precomputed input projections; saves nothing for a backward pass.
ffi::Error reencode(int32_t threads, Floats projected, Ints positions, Ints lengths, Floats kernel,
                  FloatsOut states, FloatsOut last) {
  const auto gs = projected.dimensions(), ps = positions.dimensions(), ks = kernel.dimensions();
  if (gs.size() != 4 || ps.size() != 2 || ks.size() != 3 || lengths.dimensions().size() != 1 ||
      gs[1] != ps[1] || lengths.dimensions()[0] != ps[1] || gs[2] != 2 || ks[0] != 2 || ks[1] < 1 ||
      ps[0] < 1 || ps[1] < 1 || gs[3] != GATES * ks[1] || ks[2] != gs[3])
    return ffi::Error::InvalidArgument(
        "lstm: expected projected[n b 2 4h], positions[t b], lengths[b], kernel[2 h 4h]");
  const Layer layer(projected, positions, lengths, kernel);
  for (size_t t = 0; t < layer.steps; t++)
    for (size_t r = 0; r < layer.batch && t < layer.length[r]; r++) {
      const int32_t position = layer.position[t * layer.batch + layer.row[r]];
      if (position < 0 || position >= gs[0]) return ffi::Error::InvalidArgument("lstm: positions must be in [0, tokens)");
    }
  return walk(threads, layer, states, last, nullptr);
}

ffi::Error backward(int32_t threads, Floats x, Ints lengths, Floats kernel, Floats bias, Floats noise,
                    Floats states_, Floats saved_, Floats d_states_, Floats d_last_, FloatsOut d_x_,
                    FloatsOut d_kernel_, FloatsOut d_bias_, FloatsOut d_noise_) {
  if (auto error = check(x, lengths, kernel, bias, noise); error.failure()) return error;
  const Layer layer(x, lengths, kernel, bias, noise);
  const size_t inputs = layer.inputs, hidden = layer.hidden, units = layer.units;
  const size_t width = layer.width, blocks = layer.blocks, batch = layer.batch, columns = GATES * hidden;
  if (!has_shape(states_, {layer.steps, batch, 2 * hidden}) ||
      !has_shape(d_states_, {layer.steps, batch, 2 * hidden}) ||
      !has_shape(d_last_, {batch, 2 * hidden}) ||
      static_cast<int64_t>(saved_.element_count()) != saved_size(layer.steps, batch, hidden) ||
      !has_shape(*d_x_, {layer.steps, batch, inputs}) || !has_shape(*d_bias_, {2, columns}) ||
      !has_shape(*d_kernel_, {2, inputs + hidden, columns}) ||
      d_noise_->element_count() != noise.element_count())
    return ffi::Error::InvalidArgument("lstm: an argument or result has the wrong shape");
  const float *states = states_.typed_data(), *saved = saved_.typed_data();
  const float *d_states = d_states_.typed_data(), *d_last = d_last_.typed_data();
  float *d_x = d_x_->typed_data(), *d_noise = layer.noise ? d_noise_->typed_data() : nullptr;
  if (d_noise) std::memset(d_noise, 0, d_noise_->size_bytes());

  // The transposed kernel: panels of the inputs, then panels of the units.
  const size_t input_panels = (inputs + PANEL - 1) / PANEL, unit_panels = (units + PANEL - 1) / PANEL;
  const size_t panel_count = input_panels + unit_panels, panel_size = blocks * PANEL * PANEL;
  Array panels(2 * panel_count * panel_size);
  for (int direction = 0; direction < 2; direction++)
    for (size_t k = 0; k < width; k++)
      if (const float* from = layer.kernel_row(direction, k)) {
        const size_t position = k < inputs ? k : input_panels * PANEL + k - inputs;
        float* to = panels.at((direction * panel_count + position / PANEL) * panel_size + position % PANEL);
        layer.for_gates([&](size_t column, size_t j, size_t gate) {
          to[(j * PANEL + gate) * PANEL] = from[column];
        });
      }

  const size_t chains = std::min<size_t>(layer.tiles, MOST_CHAINS);
  const size_t kernel_size = blocks * width * PANEL, bias_size = blocks * PANEL;
  Array kernel_sums(chains * 2 * kernel_size), bias_sums(chains * 2 * bias_size);

  auto work = [&](size_t chain, size_t tile) {
    const size_t first = tile * TILE, rows = std::min<size_t>(TILE, batch - first);
    const size_t *row = &layer.row[first], *length = &layer.length[first], steps = length[0];
    for (int direction = 0; direction < 2; direction++) {
      float* kernel_sum = kernel_sums.at((chain * 2 + direction) * kernel_size);
      float* bias_sum = bias_sums.at((chain * 2 + direction) * bias_size);
      Array read(DEPTH * width), d_z(DEPTH * blocks * PANEL), d_h(TILE * units), d_c(TILE * units);
      Array d_read(ROWS * PANEL);
      size_t filled = 0;  // rows of `read` and `d_z` that are not yet summed
      auto sum_up = [&] {
        for (size_t j = 0; j < blocks; j++)
          for (size_t k = 0; k < width; k += ROWS)
            for_rows<KernelBackward>(width - k, read.at(k), width, d_z.at(j * DEPTH * PANEL), filled,
                                     kernel_sum + (j * width + k) * PANEL);
        filled = 0;
      };
      for (size_t r = 0; r < rows; r++)
        std::memcpy(d_h.at(r * units), d_last + (row[r] * 2 + direction) * hidden, hidden * sizeof(float));
      size_t n = direction ? rows : 0;
      for (size_t step = 0; step < steps; step++) {
        const size_t t = direction ? step : steps - 1 - step;
        const size_t before = direction ? t + 1 : t - 1;  // the previous token in scan order
        if (direction)
          while (n > 0 && length[n - 1] <= t) n--;
        else
          while (n < rows && length[n] > t) n++;
        if (filled + n > DEPTH) sum_up();
        const float* kept = saved + layer.saved(direction, tile, t);
        for (size_t r = 0; r < n; r++) {
          const bool begins = direction ? before >= length[r] : t == 0;
          float* reads = read.at((filled + r) * width);
          layer.read(direction, t, row[r], reads);
          std::memset(reads + inputs, 0, units * sizeof(float));
          if (!begins)
            std::memcpy(reads + inputs, states + ((before * batch + row[r]) * 2 + direction) * hidden,
                        hidden * sizeof(float));
          for (size_t j = 0; j < blocks; j++) {
            const float* gates = kept + (r * blocks + j) * SAVED * LANES;
            const Vector i = load(gates), f = load(gates + LANES), g = load(gates + 2 * LANES);
            const Vector o = load(gates + 3 * LANES), squashed = tanh(load(gates + 4 * LANES));
            Vector c_before{};
            if (!begins)
              c_before = load(saved + layer.saved(direction, tile, before) + (r * blocks + j) * SAVED * LANES +
                              4 * LANES);
            float *d_hidden = d_h.at(r * units + j * LANES), *d_cell = d_c.at(r * units + j * LANES);
            const float* d_state = d_states + ((t * batch + row[r]) * 2 + direction) * hidden + j * LANES;
            const Vector dh = load(d_hidden) + load(d_state, hidden - j * LANES);
            const Vector dc = load(d_cell) + dh * o * (1.f - squashed * squashed);
            const Vector dz[GATES] = {dc * g * i * (1.f - i), dc * c_before * f * (1.f - f),
                                      dc * i * (1.f - g * g), dh * squashed * o * (1.f - o)};
            store(d_cell, dc * f);
            for (int k = 0; k < GATES; k++) {
              store(d_z.at((j * DEPTH + filled + r) * PANEL + k * LANES), dz[k]);
              float* sum = bias_sum + j * PANEL + k * LANES;
              store(sum, load(sum) + dz[k]);
            }
          }
        }
        if (step + 1 < steps)
          for (size_t r = 0; r < n; r++) {
            prefetch(layer.x + (before * batch + row[r]) * inputs, inputs);
            prefetch(d_states + ((before * batch + row[r]) * 2 + direction) * hidden, hidden);
          }
        for (size_t r = 0; r < n; r += ROWS)
          for (size_t p = 0; p < panel_count; p++) {
            for_rows<ReadBackward>(n - r, d_z.at((filled + r) * PANEL), blocks,
                                   panels.at((direction * panel_count + p) * panel_size), d_read.at());
            for (size_t q = r; q < std::min<size_t>(r + ROWS, n); q++) {
              const float* from = d_read.at((q - r) * PANEL);
              if (p >= input_panels) {
                const size_t u = (p - input_panels) * PANEL;
                std::memcpy(d_h.at(q * units + u), from,
                            std::min<size_t>(PANEL, units - u) * sizeof(float));
                continue;
              }
              const size_t k0 = p * PANEL, some = std::min<size_t>(PANEL, inputs - k0);
              const float* given = layer.x + (t * batch + row[q]) * inputs + k0;
              float* to = d_x + (t * batch + row[q]) * inputs + k0;
              const size_t at_noise = (direction * batch + row[q]) * inputs + k0;
              for (size_t k = 0; k < some; k++) {
                const float value = layer.noise ? from[k] * layer.noise[at_noise + k] : from[k];
                to[k] = direction ? to[k] + value : value;
              }
              if (d_noise)
                for (size_t k = 0; k < some; k++) d_noise[at_noise + k] += from[k] * given[k];
            }
          }
        filled += n;
      }
      sum_up();
    }
    for (size_t t = length[rows - 1]; t < layer.steps; t++)
      for (size_t r = rows; r-- > 0 && length[r] <= t;)
        std::memset(d_x + (t * batch + row[r]) * inputs, 0, inputs * sizeof(float));
  };
  in_parallel(threads, chains, [&](size_t chain) {
    for (size_t tile = chain; tile < layer.tiles; tile += chains) work(chain, tile);
  });

  auto add_up = [&](const Array& sums, size_t size) {  // adds all chains to the first
    for (size_t chain = 1; chain < chains; chain++)
      for (size_t k = 0; k < size; k += LANES)
        store(sums.at(k), load(sums.at(k)) + load(sums.at(chain * size + k)));
  };
  add_up(kernel_sums, 2 * kernel_size);
  add_up(bias_sums, 2 * bias_size);
  auto unpack = [&](const float* from, size_t stride, float* to) {  // copies a row of gates from its panels
    for (size_t j = 0; j < blocks; j++)
      for (size_t g = 0; g < GATES; g++)
        std::memcpy(to + g * hidden + j * LANES, from + j * stride + g * LANES,
                    std::min<size_t>(LANES, hidden - j * LANES) * sizeof(float));
  };
  for (int direction = 0; direction < 2; direction++) {
    for (size_t k = 0; k < inputs + hidden; k++)
      unpack(kernel_sums.at((direction * blocks * width + k) * PANEL), width * PANEL,
             d_kernel_->typed_data() + (direction * (inputs + hidden) + k) * columns);
    unpack(bias_sums.at(direction * blocks * PANEL), PANEL, d_bias_->typed_data() + direction * columns);
  }
  return ffi::Error::Success();
}

// Calls a handler and converts exceptions, which XLA does not catch, to errors.
template <auto handler, class... Arguments>
ffi::Error guarded(Arguments... arguments) {
  try {
    return handler(arguments...);
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("lstm: ") + error.what());
  }
}

ffi::Error forward_guarded(int32_t threads, Floats x, Ints lengths, Floats kernel, Floats bias,
                           Floats noise, FloatsOut states, FloatsOut last, FloatsOut saved) {
  return guarded<forward>(threads, x, lengths, kernel, bias, noise, states, last, saved);
}

ffi::Error reencode_guarded(int32_t threads, Floats projected, Ints positions, Ints lengths, Floats kernel,
                          FloatsOut states, FloatsOut last) {
  return guarded<reencode>(threads, projected, positions, lengths, kernel, states, last);
}

ffi::Error backward_guarded(int32_t threads, Floats x, Ints lengths, Floats kernel, Floats bias,
                            Floats noise, Floats states, Floats saved, Floats d_states,
                            Floats d_last, FloatsOut d_x, FloatsOut d_kernel, FloatsOut d_bias,
                            FloatsOut d_noise) {
  return guarded<backward>(threads, x, lengths, kernel, bias, noise, states, saved, d_states,
                           d_last, d_x, d_kernel, d_bias, d_noise);
}

}  // namespace

// Returns the number of floats in `saved`.
extern "C" int64_t lstm_saved_size(int64_t steps, int64_t batch, int64_t hidden) {
  return saved_size(steps, batch, hidden);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_forward, forward_guarded,
                              ffi::Ffi::Bind()
                                  .Attr<int32_t>("threads")
                                  .Arg<Floats>()   // x [t b e]
                                  .Arg<Ints>()     // lengths [b]
                                  .Arg<Floats>()   // kernel [2 e+h 4h]
                                  .Arg<Floats>()   // bias [2 4h]
                                  .Arg<Floats>()   // noise [2 b e], or empty
                                  .Ret<Floats>()   // states [t b 2h]
                                  .Ret<Floats>()   // last [b 2h]
                                  .Ret<Floats>()); // saved, or empty

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_reencode, reencode_guarded,
                              ffi::Ffi::Bind()
                                  .Attr<int32_t>("threads")
                                  .Arg<Floats>()   // projected [n b 2 4h]
                                  .Arg<Ints>()     // positions [t b]
                                  .Arg<Ints>()     // lengths [b]
                                  .Arg<Floats>()   // kernel [2 h 4h]
                                  .Ret<Floats>()   // states [t b 2h]
                                  .Ret<Floats>()); // last [b 2h]

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_backward, backward_guarded,
                              ffi::Ffi::Bind()
                                  .Attr<int32_t>("threads")
                                  .Arg<Floats>()   // x
                                  .Arg<Ints>()     // lengths
                                  .Arg<Floats>()   // kernel
                                  .Arg<Floats>()   // bias
                                  .Arg<Floats>()   // noise
                                  .Arg<Floats>()   // states
                                  .Arg<Floats>()   // saved
                                  .Arg<Floats>()   // gradient of states
                                  .Arg<Floats>()   // gradient of last
                                  .Ret<Floats>()   // gradient of x
                                  .Ret<Floats>()   // gradient of kernel
                                  .Ret<Floats>()   // gradient of bias
                                  .Ret<Floats>()); // gradient of noise
