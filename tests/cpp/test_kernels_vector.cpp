// Kernels of single samples, changes of layout and sums over lanes.
#include "kernel_cases.hpp"

using namespace kernel_cases;

TEST_CASE_TEMPLATE("gemv, gemv_few: y = A x + bias, rows and samples independent of each other", T,
                   float, double) {
  for (const Index m : kSizes) {
    for (const Index k : kSizes) {
      for (const Index samples : {1, 2, 3, 4, 7}) {
        const Index lda = k + samples % 2 * 5, ldx = k + samples % 3, ldy = m + samples % 4;
        CAPTURE(m);
        CAPTURE(k);
        CAPTURE(samples);
        const auto a = random_array<T>(m * lda, 1), x = random_array<T>(samples * ldx, 2),
                   bias = random_array<T>(m, 3), start = random_array<T>(samples * ldy, 4);
        for (const bool with_bias : {false, true}) {
          const auto a2 = to_double(a), x2 = to_double(x), bias2 = to_double(bias);
          const auto abs_bias = absolute(bias2);
          // What lies between the results stays as it is.
          Guarded<double> want = to_double(start), bound = absolute(want);
          oracle().gemv_few(samples, m, k, a2.data(), lda, x2.data(), ldx,
                            with_bias ? bias2.data() : nullptr, want.data(), ldy);
          oracle().gemv_few(samples, m, k, absolute(a2).data(), lda, absolute(x2).data(), ldx,
                            with_bias ? abs_bias.data() : nullptr, bound.data(), ldy);
          for_each_kernels<T>([&](const Kernels<T>& kernels) {
            const T* b = with_bias ? bias.data() : nullptr;
            Guarded<T> got = start, single = start;
            kernels.gemv_few(samples, m, k, a.data(), lda, x.data(), ldx, b, got.data(), ldy);
            CHECK(worst_error(got, want, bound, static_cast<double>(k + 2)) <= 1.0);
            CHECK(got.guards_intact());
            for (Index s = 0; s < samples; ++s) {
              for (Index i = 0; i < m; ++i) {
                kernels.gemv(1, k, a.data() + i * lda, lda, x.data() + s * ldx, b ? b + i : nullptr,
                             single.data() + s * ldy + i);
              }
            }
            CHECK(single.same_bits(got));
            for (Index s = 0; s < samples; ++s)
              kernels.gemv(m, k, a.data(), lda, x.data() + s * ldx, b, single.data() + s * ldy);
            CHECK(single.same_bits(got));
          });
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("gemv_t: x = A^T y, columns independent of each other", T, float, double) {
  for (const Index m : kSizes) {
    for (const Index k : kSizes) {
      const Index lda = k + 3;
      CAPTURE(m);
      CAPTURE(k);
      const auto a = random_array<T>(m * lda, 1), y = random_array<T>(m, 2),
                 start = random_array<T>(k, 3);
      for (const bool accumulate : {false, true}) {
        Guarded<double> want = to_double(start), bound = absolute(want);
        const auto a2 = to_double(a), y2 = to_double(y);
        oracle().gemv_t(m, k, a2.data(), lda, y2.data(), want.data(), accumulate);
        oracle().gemv_t(m, k, absolute(a2).data(), lda, absolute(y2).data(), bound.data(),
                        accumulate);
        for_each_kernels<T>([&](const Kernels<T>& kernels) {
          Guarded<T> got = start, split = start;
          kernels.gemv_t(m, k, a.data(), lda, y.data(), got.data(), accumulate);
          CHECK(worst_error(got, want, bound, static_cast<double>(m + 2)) <= 1.0);
          CHECK(got.guards_intact());
          for (Index j = 0; j < k; j += 24) {
            kernels.gemv_t(m, std::min<Index>(24, k - j), a.data() + j, lda, y.data(),
                           split.data() + j, accumulate);
          }
          CHECK(split.same_bits(got));
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("gemv_t: no rows give zeros, or leave x alone", T, float, double) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for_each_kernels<T>([&](const Kernels<T>& kernels) {
    Guarded<T> x(7, nan), kept(7, T(3));
    kernels.gemv_t(0, 7, nullptr, 7, nullptr, x.data(), false);
    kernels.gemv_t(0, 7, nullptr, 7, nullptr, kept.data(), true);
    CHECK(x.same_bits(Guarded<T>(7, T(0))));
    CHECK(kept.same_bits(Guarded<T>(7, T(3))));
  });
}

TEST_CASE_TEMPLATE("ger: A = y x^T", T, float, double) {
  for (const Index m : kSmallSizes) {
    for (const Index k : kSizes) {
      const Index lda = k + 2;
      CAPTURE(m);
      CAPTURE(k);
      const auto y = random_array<T>(m, 1), x = random_array<T>(k, 2),
                 start = random_array<T>(m * lda, 3);
      for (const bool accumulate : {false, true}) {
        Guarded<double> want = to_double(start), bound = absolute(want);
        const auto y2 = to_double(y), x2 = to_double(x);
        oracle().ger(m, k, y2.data(), x2.data(), want.data(), lda, accumulate);
        oracle().ger(m, k, absolute(y2).data(), absolute(x2).data(), bound.data(), lda, accumulate);
        for_each_kernels<T>([&](const Kernels<T>& kernels) {
          Guarded<T> got = start;
          kernels.ger(m, k, y.data(), x.data(), got.data(), lda, accumulate);
          CHECK(worst_error(got, want, bound, 2) <= 1.0);
          CHECK(got.guards_intact());
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("rows_to_block and block_to_rows", T, float, double) {
  for (const Index lanes : {Index(1), kLanes}) {
    for (const Index d : kSizes) {
      for (const Index count : kSizes) {
        if (count > lanes) continue;
        CAPTURE(lanes);
        CAPTURE(d);
        CAPTURE(count);
        const Index ldr = d + 3;
        const auto rows = random_array<T>(count * ldr, 1);
        for_each_kernels<T>([&](const Kernels<T>& kernels) {
          Guarded<T> block(d * lanes, T(9));
          kernels.rows_to_block(count, d, lanes, rows.data(), ldr, block.data());
          int wrong = 0;
          for (Index j = 0; j < d; ++j) {
            for (Index l = 0; l < lanes; ++l) {
              wrong += block[j * lanes + l] != rows[std::min(l, count - 1) * ldr + j];
            }
          }
          CHECK(wrong == 0);
          CHECK(block.guards_intact());

          for (const bool accumulate : {false, true}) {
            Guarded<T> back(count * ldr, T(0.5));
            kernels.block_to_rows(count, d, lanes, block.data(), back.data(), ldr, accumulate);
            for (Index l = 0; l < count; ++l) {
              for (Index j = 0; j < ldr; ++j) {
                const T moved = accumulate ? T(0.5) + rows[l * ldr + j] : rows[l * ldr + j];
                wrong += back[l * ldr + j] != (j < d ? moved : T(0.5));
              }
            }
            CHECK(wrong == 0);
            CHECK(back.guards_intact());
          }
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("gather_rows: rows in any order, as lanes and as tiles", T, float, double) {
  constexpr Index kPanel = gradstack::kPanel;
  for (const Index lanes : {Index(8), Index(16), kLanes}) {
    for (const Index d : kSizes) {
      for (const Index count : kSizes) {
        if (count > lanes) continue;
        CAPTURE(lanes);
        CAPTURE(d);
        CAPTURE(count);
        const Index size = (d + kPanel - 1) / kPanel * kPanel * lanes;
        const auto values = random_array<T>(count * d, 1);
        std::vector<const T*> rows;
        for (Index l = 0; l < count; ++l) rows.push_back(values.data() + (count - 1 - l) * d);
        for_each_kernels<T>([&](const Kernels<T>& kernels) {
          if (lanes % kernels.vector != 0) return;  // blocks are of whole vectors
          Guarded<T> block(d * lanes, T(9)), alone(d * lanes, T(9)), tiles(size, T(9));
          kernels.gather_rows(count, d, lanes, rows.data(), block.data(), tiles.data());
          kernels.gather_rows(count, d, lanes, rows.data(), alone.data(), nullptr);
          const auto value = [&](Index l, Index j) {
            return rows[static_cast<std::size_t>(std::min(l, count - 1))][j];
          };
          int wrong = 0;
          for (Index i = 0; i < d * lanes; ++i) wrong += block[i] != value(i % lanes, i / lanes);
          for (Index i = 0; i < size; ++i) {
            const Index j = i / (kPanel * lanes) * kPanel + i % kPanel, l = i / kPanel % lanes;
            wrong += tiles[i] != (j < d ? value(l, j) : T(9));
          }
          CHECK(wrong == 0);
          CHECK(alone.same_bits(block));
          CHECK((block.guards_intact() && tiles.guards_intact()));
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("sum_lanes: rows independent of each other", T, float, double) {
  for (const Index lanes : {Index(1), kLanes}) {
    for (const Index rows : kSizes) {
      for (const Index segments : {0, 1, 3, 16}) {
        CAPTURE(lanes);
        CAPTURE(rows);
        CAPTURE(segments);
        const Index stride = rows * lanes + 8;
        const auto x = random_array<T>(segments * stride, 1), start = random_array<T>(rows, 2);
        for (const bool accumulate : {false, true}) {
          Guarded<double> want = to_double(start), bound = absolute(want);
          const auto x2 = to_double(x);
          oracle().sum_lanes(rows, lanes, segments, stride, x2.data(), want.data(), accumulate);
          oracle().sum_lanes(rows, lanes, segments, stride, absolute(x2).data(), bound.data(),
                             accumulate);
          for_each_kernels<T>([&](const Kernels<T>& kernels) {
            Guarded<T> got = start, split = start;
            kernels.sum_lanes(rows, lanes, segments, stride, x.data(), got.data(), accumulate);
            const auto terms = static_cast<double>(segments * lanes + 1);
            CHECK(worst_error(got, want, bound, terms) <= 1.0);
            CHECK(got.guards_intact());
            for (Index r = 0; r < rows; ++r) {
              kernels.sum_lanes(1, lanes, segments, stride, x.data() + r * lanes, split.data() + r,
                                accumulate);
            }
            CHECK(split.same_bits(got));
          });
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("nan and inf reach exactly the elements they belong to", T, float, double) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  auto a = random_array<T>(13 * 21, 1);
  a[5 * 21 + 20] = nan;
  a[6 * 21 + 3] = inf;
  const Guarded<T> x(21, T(1)), y(13, T(1));
  for_each_kernels<T>([&](const Kernels<T>& kernels) {
    Guarded<T> ax(13), aty(21);
    kernels.gemv(13, 21, a.data(), 21, x.data(), nullptr, ax.data());
    kernels.gemv_t(13, 21, a.data(), 21, y.data(), aty.data(), false);
    int wrong = 0;
    for (Index i = 0; i < 13; ++i) {
      wrong += !(i == 5 ? std::isnan(ax[i]) : i == 6 ? ax[i] == inf : std::isfinite(ax[i]));
    }
    for (Index j = 0; j < 21; ++j) {
      wrong += !(j == 20 ? std::isnan(aty[j]) : j == 3 ? aty[j] == inf : std::isfinite(aty[j]));
    }
    CHECK(wrong == 0);
  });
}
