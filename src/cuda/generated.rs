// Made by bindgen from kernels/include/gradroute.h: do not edit.

pub const GRADROUTE_ABI_VERSION: u32 = 1;
pub const GRADROUTE_PROBE_WORDS: u32 = 16;
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct GradrouteProbeParams {
    pub rows: u64,
    pub offset: i64,
    pub features: u32,
    pub shift: i32,
    pub scale: f32,
    pub flags: [u8; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GradrouteProbeParams"][::core::mem::size_of::<GradrouteProbeParams>() - 32usize];
    ["Alignment of GradrouteProbeParams"][::core::mem::align_of::<GradrouteProbeParams>() - 8usize];
    ["Offset of field: GradrouteProbeParams::rows"]
        [::core::mem::offset_of!(GradrouteProbeParams, rows) - 0usize];
    ["Offset of field: GradrouteProbeParams::offset"]
        [::core::mem::offset_of!(GradrouteProbeParams, offset) - 8usize];
    ["Offset of field: GradrouteProbeParams::features"]
        [::core::mem::offset_of!(GradrouteProbeParams, features) - 16usize];
    ["Offset of field: GradrouteProbeParams::shift"]
        [::core::mem::offset_of!(GradrouteProbeParams, shift) - 20usize];
    ["Offset of field: GradrouteProbeParams::scale"]
        [::core::mem::offset_of!(GradrouteProbeParams, scale) - 24usize];
    ["Offset of field: GradrouteProbeParams::flags"]
        [::core::mem::offset_of!(GradrouteProbeParams, flags) - 28usize];
};
