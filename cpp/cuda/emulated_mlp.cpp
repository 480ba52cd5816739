// The fused MLP on the host; a translation unit of its own, as it takes long to compile.
#include <condition_variable>
#include <thread>

#include "emulated.hpp"
#include "fused_queue.hpp"

namespace gradstack::device {
namespace {

template <class Body> void run_threads(const Body& body, int block, std::uint16_t* memory) {
  std::mutex mutex;
  std::condition_variable all_here;
  int waiting = 0, round = 0;
  const auto wait = [&] {
    std::unique_lock<std::mutex> lock(mutex);
    const int mine = round;
    if (++waiting == kWarps) {
      waiting = 0;
      ++round;
      all_here.notify_all();
    }
    all_here.wait(lock, [&] { return round != mine; });
  };
  std::vector<std::thread> warps;
  for (int warp = 0; warp < kWarps; ++warp)
    warps.emplace_back([&, warp] { body(Block(block, memory, warp, wait)); });
  for (std::thread& warp : warps) warp.join();
}

}  // namespace

template <class Body>
void HostLaunch::tiles(const char* name, int blocks, int shared, const Body& body) {
  call(
      [=, threads = warps_in_threads] {
        const auto halves = static_cast<std::size_t>(shared) / sizeof(std::uint16_t);
        for (int block = blocks; block-- > 0;) {
          std::vector<std::uint16_t> memory(halves, 0xffff);  // NaN: what nobody wrote shows
          if (threads)
            run_threads(body, block, memory.data());
          else
            body(Block(block, memory.data()));
        }
      },
      name);
}

template void KernelQueue<HostLaunch>::mlp_forward(const DeviceMlp& m);
template void KernelQueue<HostLaunch>::mlp_backward(const DeviceMlp& m);

}  // namespace gradstack::device
