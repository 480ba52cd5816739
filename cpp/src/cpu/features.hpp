// What the processor and the operating system allow.
#pragma once

namespace gradstack {

// Can this machine run code compiled for the instruction set "v2", "v3", "v4" or "neon"? Includes
// the operating system's support for the wider registers.
bool cpu_supports(const char* isa);

}  // namespace gradstack
