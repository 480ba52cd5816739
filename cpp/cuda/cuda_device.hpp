// What the extension module needs of a kind of device: CUDA's, or the emulated one.
#pragma once

#include <memory>
#include <string>

#include "gradstack/device.hpp"

namespace gradstack::device {

struct Devices {
  int count = 0;
  int driver = 0;      // version, 0: no driver
  std::string reason;  // why there is none
};

Devices devices();
std::shared_ptr<DeviceQueue> open_device(int device);

}  // namespace gradstack::device
