// The table of one variant's kernels.

#include "blocks.h"

namespace boe {
namespace BOE_VARIANT {

extern const Kernels kernels;
const Kernels kernels = {scan,       find,      gradient,   collect,
                         soft_write, pack_rows, unpack_row, attend, attend_gradient};

}  // namespace BOE_VARIANT
}  // namespace boe
