# The only place where anything foreign is looked for.
if(WEIGHTSHARE_PYTHON)
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
  find_package(pybind11 3.0 CONFIG REQUIRED)
else()
  find_package(Python 3.11 QUIET COMPONENTS Interpreter)
endif()

find_package(Eigen3 3.4 CONFIG QUIET)
if(NOT Eigen3_FOUND AND Python_EXECUTABLE)  # PyPI's cmeel-eigen, from the build environment
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "from importlib.metadata import distribution as d; print(d('cmeel-eigen').locate_file('cmeel.prefix'), end='')"
    OUTPUT_VARIABLE cmeel_prefix ERROR_QUIET)
  find_package(Eigen3 3.4 CONFIG QUIET PATHS "${cmeel_prefix}" NO_DEFAULT_PATH)
endif()
if(NOT Eigen3_FOUND)
  message(FATAL_ERROR "weightshare needs the headers of Eigen 3.4: pip install cmeel-eigen, or apt-get install libeigen3-dev.")
endif()

if(WEIGHTSHARE_OPENMP)
  find_package(OpenMP COMPONENTS CXX)
  if(NOT OpenMP_CXX_FOUND)
    message(WARNING "This compiler has no OpenMP: weightshare will use one thread.")
  endif()
endif()

if(WEIGHTSHARE_TESTS)
  find_path(DOCTEST_INCLUDE doctest/doctest.h)
  if(NOT DOCTEST_INCLUDE)
    message(WARNING "doctest is not installed (Debian: doctest-dev): the C++ tests are left out.")
  endif()
endif()
