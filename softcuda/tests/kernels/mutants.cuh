// A kernel and its mutants are instances of one template: BUG(n) is true in the nth. The comment
// "caught n" marks the line a check must name for mutant n; "result n" a mutant that only the
// result shows.
#pragma once
#include <cstdint>
#define BUG(n) (M == (n))
