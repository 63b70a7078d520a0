// C = A B^T in bf16 with f32 sums on sm_90a: tiles of 64 x 64 x 64 by tensor copies into two stages,
// products by wgmma; blocks of one warp group. A is scaled in shared memory before use, so the generic
// proxy writes what wgmma reads.
#include "mutants.cuh"
#include <cuda.h>
#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;
constexpr int TILE = 64, BYTES = TILE * TILE * 2;

__device__ __forceinline__ uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 128-byte swizzled rows: 8 rows make 1024 bytes.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
  return ((address & 0x3ffff) >> 4) | (uint64_t(1) << 16) | (uint64_t(1024 >> 4) << 32) | (uint64_t(1) << 62);
}

__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  // clang-format off: a report names the last line of an asm statement
  asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(barrier), "r"(parity) : "memory"); // caught 2 3 6
  // clang-format on
}

__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap *map, int x, int y, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(barrier) : "memory"); // caught 5 7
}

__device__ __forceinline__ void product(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " // caught 4
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "%32, %33, 1, 1, 1, 0, 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                 "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
                 "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
                 "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
                 "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
               : "l"(a), "l"(b));
}

template <int M>
__global__ void __launch_bounds__(128)
    wgmma(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float *c, float scale, int n, int k) {
  extern __shared__ __align__(1024) uint8_t stages[]; // 2 of A, 2 of B
  __shared__ uint64_t full[2];
  int t = threadIdx.x, steps = k / TILE;
  if (t == 0)
    for (int s = 0; s < 2; s++)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[s])) : "memory");
  if (!BUG(6)) __syncthreads();
  auto fetch = [&](int step) {
    uint32_t barrier = shared_address(&full[step % 2]), stage = step % 2 * BYTES;
    // clang-format off: a report names the last line of an asm statement
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(BUG(2) ? 2 * BYTES + 16 : 2 * BYTES) : "memory"); // caught 8
    // clang-format on
    int x = step * TILE, y = blockIdx.y * TILE;
    tensor_copy(shared_address(stages) + stage, &a, BUG(9) ? y : x, BUG(9) ? x : y, barrier); // result 9
    tensor_copy(shared_address(stages) + 2 * BYTES + stage, &b, x, blockIdx.x * TILE, barrier);
  };
  if (BUG(8) ? t < 2 : t == 0) fetch(0);
  float sums[32] = {};
  for (int step = 0; step < steps; step++) {
    if (t == 0 && step + 1 < steps) fetch(step + 1);
    if (!BUG(1)) wait(shared_address(&full[step % 2]), BUG(3) ? (step / 2 + 1) % 2 : step / 2 % 2);
    __nv_bfloat162 *tile = reinterpret_cast<__nv_bfloat162 *>(stages + step % 2 * BYTES);
    for (int i = t; i < BYTES / 4; i += 128)
      tile[i] = __hmul2(tile[i], __float2bfloat162_rn(scale)); // caught 1 3 4
    if (!BUG(4)) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    uint64_t da = descriptor(shared_address(stages) + step % 2 * BYTES);
    uint64_t db = descriptor(shared_address(stages) + (2 + step % 2) * BYTES);
    for (int inner = 0; inner < TILE / 16; inner++) product(sums, da + inner * 2, db + inner * 2);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (!BUG(5)) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (!BUG(7)) __syncthreads();
  }
  if (BUG(5)) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  int lane = t % 32, warp = t / 32;
  for (int j = 0; j < 8; j++)
    for (int e = 0; e < 4; e++) {
      int row = blockIdx.y * TILE + warp * 16 + lane / 4 + e / 2 * 8;
      int column = blockIdx.x * TILE + j * 8 + lane % 4 * 2 + e % 2;
      c[static_cast<size_t>(row) * n + column] = sums[j * 4 + e];
    }
}

#define INSTANCE(n) \
  template __global__ void wgmma<n>(const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap, float *, float, int, int);
INSTANCE(0) INSTANCE(1) INSTANCE(2) INSTANCE(3) INSTANCE(4) INSTANCE(5) INSTANCE(6) INSTANCE(7) INSTANCE(8) INSTANCE(9)
