// Cache-line aligned memory that lives as long as its owner.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "gradstack/config.hpp"

namespace gradstack {

class Arena {
 public:
  // n zeroed values. Zeroed, so that padding lanes never hold a NaN left by someone else.
  template <class T> T* allocate(Index n) {
    const std::size_t bytes =
        (static_cast<std::size_t>(n > 0 ? n : 1) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    pieces_.emplace_back(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kAlign})));
    std::memset(pieces_.back().get(), 0, bytes);
    return reinterpret_cast<T*>(pieces_.back().get());
  }

 private:
  static constexpr std::size_t kAlign = 64;
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{kAlign}); }
  };
  std::vector<std::unique_ptr<std::byte, Free>> pieces_;
};

}  // namespace gradstack
