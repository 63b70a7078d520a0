// C = A B^T in bf16 with f32 sums, tiles of 64 x 64 x 32, two stages filled by cp.async, fragments by
// ldmatrix, products by mma.sync; blocks of 128 threads, each warp a quarter of 32 x 32.
#include "mutants.cuh"
#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;
constexpr int TILE = 64, DEPTH = 32, PITCH = DEPTH + 8;

__device__ __forceinline__ uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void copy16(uint32_t to, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory"); // caught 5 7 8 12
}

__device__ __forceinline__ void fragments(uint32_t (&f)[4], uint32_t from) {
  // clang-format off: a report names the last line of an asm statement
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(from) : "memory"); // caught 1 2 3 4 6 11 13
  // clang-format on
}

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows of 32 numbers of one operand into one stage.
template <int M>
__device__ __forceinline__ void load(bf16 *stage, const bf16 *from, int k, int depth) {
  constexpr int pitch = BUG(8) ? PITCH + 1 : PITCH;
  for (int chunk = threadIdx.x; chunk < TILE * DEPTH / 8; chunk += 128) {
    int row = chunk / 4, column = chunk % 4 * 8;
    if (BUG(6) && row >= TILE / 2) continue;
    int source = BUG(7) ? row + 1 : row;
    copy16(shared_address(stage + row * pitch + column), from + static_cast<size_t>(source) * k + depth + column);
  }
}

template <int M>
__global__ void __launch_bounds__(128) gemm(const bf16 *a, const bf16 *b, float *c, int n, int k) {
  constexpr int pitch = BUG(8) ? PITCH + 1 : PITCH, size = TILE * pitch;
  extern __shared__ __align__(16) bf16 stages[]; // 2 stages of A, then 2 of B
  bf16 *as = stages, *bs = stages + 2 * size;
  a += static_cast<size_t>(blockIdx.y) * TILE * k, b += static_cast<size_t>(blockIdx.x) * TILE * k;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = warp / 2 * 32, col0 = warp % 2 * 32;
  float sums[2][4][4] = {};
  load<M>(as, a, k, 0);
  load<M>(bs, b, k, 0);
  if (!BUG(11)) asm volatile("cp.async.commit_group;" ::: "memory");
  int steps = k / DEPTH;
  for (int step = 0; step < steps; step++) {
    int stage = step % 2;
    if (step + 1 < steps) {
      load<M>(as + (stage ^ 1) * size, a, k, (step + 1) * DEPTH);
      load<M>(bs + (stage ^ 1) * size, b, k, (step + 1) * DEPTH);
      if (!BUG(11)) asm volatile("cp.async.commit_group;" ::: "memory");
      if (BUG(3))
        asm volatile("cp.async.wait_group 2;" ::: "memory");
      else if (!BUG(2))
        asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else if (!BUG(2)) {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    if (!BUG(1)) __syncthreads();
    if (BUG(4)) stage ^= 1;
    for (int inner = 0; inner < DEPTH; inner += 16) {
      uint32_t fa[2][4], fb[2][4];
      for (int i = 0; i < 2; i++) {
        int row = row0 + i * 16 + lane % 16, column = inner + (BUG(13) ? lane / 8 : lane / 16) * 8;
        fragments(fa[i], shared_address(as + stage * size + row * pitch + column));
        row = col0 + i * 16 + lane % 8 + lane / 16 * 8, column = inner + lane / 8 % 2 * 8;
        fragments(fb[i], shared_address(bs + stage * size + row * pitch + column));
      }
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
          multiply(sums[i][j], fa[i], fb[j / 2][j % 2 * 2 + (BUG(9) ? 1 : 0)], fb[j / 2][j % 2 * 2 + (BUG(9) ? 0 : 1)]); // result 9
    }
    if (!BUG(5)) __syncthreads();
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) {
        int row = blockIdx.y * TILE + row0 + i * 16 + lane / 4 + e / 2 * 8;
        int column = blockIdx.x * TILE + col0 + j * 8 + lane % 4 * 2 + (BUG(14) ? e % 2 * 2 : e % 2); // result 14
        c[static_cast<size_t>(row) * n + column + (BUG(10) ? n : 0)] = sums[i][j][e]; // caught 10 14
      }
}

#define INSTANCE(n) template __global__ void gemm<n>(const bf16 *, const bf16 *, float *, int, int);
INSTANCE(0) INSTANCE(1) INSTANCE(2) INSTANCE(3) INSTANCE(4) INSTANCE(5) INSTANCE(6) INSTANCE(7) INSTANCE(8) INSTANCE(9)
INSTANCE(10) INSTANCE(11) INSTANCE(13) INSTANCE(14)
