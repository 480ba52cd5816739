# Warnings, sanitizers and the compile options shared by every unit: interface target
# gradstack_options.
add_library(gradstack_options INTERFACE)

target_compile_options(gradstack_options INTERFACE
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wpointer-arith
  # Rounding must not depend on which expressions a compiler happens to contract: fused
  # multiply-adds are written out where they are wanted.
  -ffp-contract=off -fno-math-errno -fno-trapping-math)
if(GRADSTACK_WERROR)
  target_compile_options(gradstack_options INTERFACE -Werror)
endif()

if(GRADSTACK_SANITIZE)
  target_compile_options(gradstack_options INTERFACE
    -fsanitize=${GRADSTACK_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  if(GRADSTACK_SANITIZE_EXCEPT)
    target_compile_options(gradstack_options INTERFACE -fno-sanitize=${GRADSTACK_SANITIZE_EXCEPT})
  endif()
  target_link_options(gradstack_options INTERFACE -fsanitize=${GRADSTACK_SANITIZE})
endif()
