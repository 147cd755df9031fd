// Threads: how many a piece of work is worth, and a loop over them.

#pragma once

#include <stdint.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace boe {

// Less than this much work per thread is done faster by fewer threads.
constexpr int64_t kElementsPerThread = 32768;

inline int team_size(int32_t threads, int64_t elements) {
    const int64_t useful = elements / kElementsPerThread;
    if (useful < 1) return 1;
    return useful < threads ? (int)useful : threads;
}

// body(i) for i = 0 ... count - 1, each thread taking a run of neighbours. A team of one starts
// no threads: processes forked from one that had several can do that, and only that.
template <class Body>
void parallel_for([[maybe_unused]] int team, int64_t count, const Body& body) {
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
    for (int64_t i = 0; i < count; i++) body(i);
}

// Which thread of the team runs the body, from 0.
inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace boe
