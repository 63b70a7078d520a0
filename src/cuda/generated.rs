// Made by bindgen from kernels/include/gradroute.h: do not edit.

pub const GRADROUTE_ABI_VERSION: u32 = 3;
pub const GRADROUTE_PROBE_WORDS: u32 = 65;
pub const GRADROUTE_SKETCH_NONE: u32 = 0;
pub const GRADROUTE_SKETCH_TWO_SIDED: u32 = 1;
pub const GRADROUTE_SKETCH_COUNT: u32 = 2;
pub const GRADROUTE_DW: u32 = 1;
pub const GRADROUTE_NORMS: u32 = 2;
pub const GRADROUTE_ACCUMULATE: u32 = 4;
pub const GRADROUTE_NATIVE: u32 = 8;
pub const GRADROUTE_SKETCH_ROUTED: u32 = 16;
pub const GRADROUTE_STAGE_SHARED: u32 = 32;
pub const GRADROUTE_ALIGNED: u32 = 64;
pub const GRADROUTE_SKETCH_ROWS: u32 = 128;
pub const GRADROUTE_BIAS: u32 = 256;
pub const GRADROUTE_SKETCH_ROWS_PART: u32 = 128;
pub const GRADROUTE_SKETCH_ROWS_MOST: u32 = 32;
pub const GRADROUTE_FEW_ROWS: u32 = 32;
pub const GRADROUTE_LORA_GROUPS: u32 = 20;
pub const GRADROUTE_LORA_RANK_MOST: u32 = 32;
pub const GRADROUTE_LORA_DY_WIDE: u32 = 1;
pub const GRADROUTE_LORA_X_WIDE: u32 = 2;
pub const GRADROUTE_NORM_LAYER: u32 = 0;
pub const GRADROUTE_NORM_RMS: u32 = 1;
pub const GRADROUTE_NORM_GROUP: u32 = 2;
pub const GRADROUTE_TILE: u32 = 128;
pub const GRADROUTE_THREADS: u32 = 256;
pub const GRADROUTE_WARPS: u32 = 8;
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq, bytemuck :: Pod, bytemuck :: Zeroable)]
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
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct GradrouteLayer {
    pub rows: u64,
    pub samples: u32,
    pub outputs: u32,
    pub inputs: u32,
    pub features: u32,
    pub taps: u32,
    pub regions: u32,
    pub output_spans: u32,
    pub input_spans: u32,
    pub flags: u32,
    pub sketch: u32,
    pub sketch_outputs: u32,
    pub sketch_inputs: u32,
    pub seed: u32,
    pub layer: u32,
    pub sample_scale: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GradrouteLayer"][::core::mem::size_of::<GradrouteLayer>() - 72usize];
    ["Alignment of GradrouteLayer"][::core::mem::align_of::<GradrouteLayer>() - 8usize];
    ["Offset of field: GradrouteLayer::rows"]
        [::core::mem::offset_of!(GradrouteLayer, rows) - 0usize];
    ["Offset of field: GradrouteLayer::samples"]
        [::core::mem::offset_of!(GradrouteLayer, samples) - 8usize];
    ["Offset of field: GradrouteLayer::outputs"]
        [::core::mem::offset_of!(GradrouteLayer, outputs) - 12usize];
    ["Offset of field: GradrouteLayer::inputs"]
        [::core::mem::offset_of!(GradrouteLayer, inputs) - 16usize];
    ["Offset of field: GradrouteLayer::features"]
        [::core::mem::offset_of!(GradrouteLayer, features) - 20usize];
    ["Offset of field: GradrouteLayer::taps"]
        [::core::mem::offset_of!(GradrouteLayer, taps) - 24usize];
    ["Offset of field: GradrouteLayer::regions"]
        [::core::mem::offset_of!(GradrouteLayer, regions) - 28usize];
    ["Offset of field: GradrouteLayer::output_spans"]
        [::core::mem::offset_of!(GradrouteLayer, output_spans) - 32usize];
    ["Offset of field: GradrouteLayer::input_spans"]
        [::core::mem::offset_of!(GradrouteLayer, input_spans) - 36usize];
    ["Offset of field: GradrouteLayer::flags"]
        [::core::mem::offset_of!(GradrouteLayer, flags) - 40usize];
    ["Offset of field: GradrouteLayer::sketch"]
        [::core::mem::offset_of!(GradrouteLayer, sketch) - 44usize];
    ["Offset of field: GradrouteLayer::sketch_outputs"]
        [::core::mem::offset_of!(GradrouteLayer, sketch_outputs) - 48usize];
    ["Offset of field: GradrouteLayer::sketch_inputs"]
        [::core::mem::offset_of!(GradrouteLayer, sketch_inputs) - 52usize];
    ["Offset of field: GradrouteLayer::seed"]
        [::core::mem::offset_of!(GradrouteLayer, seed) - 56usize];
    ["Offset of field: GradrouteLayer::layer"]
        [::core::mem::offset_of!(GradrouteLayer, layer) - 60usize];
    ["Offset of field: GradrouteLayer::sample_scale"]
        [::core::mem::offset_of!(GradrouteLayer, sample_scale) - 64usize];
    ["Offset of field: GradrouteLayer::reserved"]
        [::core::mem::offset_of!(GradrouteLayer, reserved) - 68usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct GradrouteDivisor {
    pub by: u32,
    pub multiplier: u32,
    pub shift: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GradrouteDivisor"][::core::mem::size_of::<GradrouteDivisor>() - 12usize];
    ["Alignment of GradrouteDivisor"][::core::mem::align_of::<GradrouteDivisor>() - 4usize];
    ["Offset of field: GradrouteDivisor::by"]
        [::core::mem::offset_of!(GradrouteDivisor, by) - 0usize];
    ["Offset of field: GradrouteDivisor::multiplier"]
        [::core::mem::offset_of!(GradrouteDivisor, multiplier) - 4usize];
    ["Offset of field: GradrouteDivisor::shift"]
        [::core::mem::offset_of!(GradrouteDivisor, shift) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct GradrouteConv {
    pub height: u32,
    pub width: u32,
    pub kernel_height: u32,
    pub kernel_width: u32,
    pub stride_y: u32,
    pub stride_x: u32,
    pub dilation_y: u32,
    pub dilation_x: u32,
    pub pad_top: u32,
    pub pad_left: u32,
    pub groups: u32,
    pub circular: u32,
    pub out_height: u32,
    pub out_width: GradrouteDivisor,
    pub positions: u32,
    pub pixels: u32,
    pub group_tiles: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GradrouteConv"][::core::mem::size_of::<GradrouteConv>() - 76usize];
    ["Alignment of GradrouteConv"][::core::mem::align_of::<GradrouteConv>() - 4usize];
    ["Offset of field: GradrouteConv::height"]
        [::core::mem::offset_of!(GradrouteConv, height) - 0usize];
    ["Offset of field: GradrouteConv::width"]
        [::core::mem::offset_of!(GradrouteConv, width) - 4usize];
    ["Offset of field: GradrouteConv::kernel_height"]
        [::core::mem::offset_of!(GradrouteConv, kernel_height) - 8usize];
    ["Offset of field: GradrouteConv::kernel_width"]
        [::core::mem::offset_of!(GradrouteConv, kernel_width) - 12usize];
    ["Offset of field: GradrouteConv::stride_y"]
        [::core::mem::offset_of!(GradrouteConv, stride_y) - 16usize];
    ["Offset of field: GradrouteConv::stride_x"]
        [::core::mem::offset_of!(GradrouteConv, stride_x) - 20usize];
    ["Offset of field: GradrouteConv::dilation_y"]
        [::core::mem::offset_of!(GradrouteConv, dilation_y) - 24usize];
    ["Offset of field: GradrouteConv::dilation_x"]
        [::core::mem::offset_of!(GradrouteConv, dilation_x) - 28usize];
    ["Offset of field: GradrouteConv::pad_top"]
        [::core::mem::offset_of!(GradrouteConv, pad_top) - 32usize];
    ["Offset of field: GradrouteConv::pad_left"]
        [::core::mem::offset_of!(GradrouteConv, pad_left) - 36usize];
    ["Offset of field: GradrouteConv::groups"]
        [::core::mem::offset_of!(GradrouteConv, groups) - 40usize];
    ["Offset of field: GradrouteConv::circular"]
        [::core::mem::offset_of!(GradrouteConv, circular) - 44usize];
    ["Offset of field: GradrouteConv::out_height"]
        [::core::mem::offset_of!(GradrouteConv, out_height) - 48usize];
    ["Offset of field: GradrouteConv::out_width"]
        [::core::mem::offset_of!(GradrouteConv, out_width) - 52usize];
    ["Offset of field: GradrouteConv::positions"]
        [::core::mem::offset_of!(GradrouteConv, positions) - 64usize];
    ["Offset of field: GradrouteConv::pixels"]
        [::core::mem::offset_of!(GradrouteConv, pixels) - 68usize];
    ["Offset of field: GradrouteConv::group_tiles"]
        [::core::mem::offset_of!(GradrouteConv, group_tiles) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct GradrouteNorm {
    pub length: u64,
    pub kind: u32,
    pub groups: u32,
    pub channels: u32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GradrouteNorm"][::core::mem::size_of::<GradrouteNorm>() - 24usize];
    ["Alignment of GradrouteNorm"][::core::mem::align_of::<GradrouteNorm>() - 8usize];
    ["Offset of field: GradrouteNorm::length"]
        [::core::mem::offset_of!(GradrouteNorm, length) - 0usize];
    ["Offset of field: GradrouteNorm::kind"][::core::mem::offset_of!(GradrouteNorm, kind) - 8usize];
    ["Offset of field: GradrouteNorm::groups"]
        [::core::mem::offset_of!(GradrouteNorm, groups) - 12usize];
    ["Offset of field: GradrouteNorm::channels"]
        [::core::mem::offset_of!(GradrouteNorm, channels) - 16usize];
    ["Offset of field: GradrouteNorm::eps"][::core::mem::offset_of!(GradrouteNorm, eps) - 20usize];
};
