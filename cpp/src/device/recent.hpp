// Plans kept between calls, the one used last first.
#pragma once

#include <algorithm>
#include <list>
#include <memory>

#include "gradstack/device.hpp"

namespace gradstack {

inline constexpr std::size_t kKept = 4;

// Moves the entry that `fits` to the front, or puts a new one there.
template <class Entry, class Fits, class Make>
Entry& recent(std::list<std::unique_ptr<Entry>>& kept, Fits&& fits, Make&& make) {
  const auto found =
      std::find_if(kept.begin(), kept.end(), [&](const auto& entry) { return fits(*entry); });
  if (found != kept.end()) {
    kept.splice(kept.begin(), kept, found);
  } else {
    if (kept.size() == kKept) kept.pop_back();  // first, so that its memory can be used again
    try {
      kept.push_front(make());
    } catch (const DeviceOutOfMemory&) {
      if (kept.empty()) throw;
      kept.clear();
      kept.push_front(make());
    }
  }
  return *kept.front();
}

}  // namespace gradstack
