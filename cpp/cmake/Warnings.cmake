# One list of warnings for all code that is ours.
function(weightshare_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wshadow)
  if(WEIGHTSHARE_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()
