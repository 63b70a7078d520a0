//! The kernels of these tests, as PTX.

/// The body of a kernel with a thread for each of `n` elements: loads of its other parameters; what it does with
/// an element, of which `%rd1` is the offset in bytes.
macro_rules! each {
    ($($load:literal)*; $($line:literal)*) => {
        concat!(
            "{
    .reg .pred %p;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<8>;
    ld.param.u32 %r1, [n];
",
            $("    ", $load, "\n",)*
            "    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p, %r5, %r1;
    @%p bra DONE;
    mul.wide.u32 %rd1, %r5, 4;
",
            $("    ", $line, "\n",)*
            "DONE:
    ret;
}
"
        )
    };
}

/// `out[i] = a[i] + b[i]` for `i < n`.
pub const ADD: &str = concat!(
    ".visible .entry add(.param .u64 out, .param .u64 a, .param .u64 b, .param .u32 n)\n",
    each!(
        "ld.param.u64 %rd2, [out];"
        "ld.param.u64 %rd3, [a];"
        "ld.param.u64 %rd4, [b];";
        "add.s64 %rd5, %rd2, %rd1;"
        "add.s64 %rd6, %rd3, %rd1;"
        "add.s64 %rd7, %rd4, %rd1;"
        "ld.global.f32 %f1, [%rd6];"
        "ld.global.f32 %f2, [%rd7];"
        "add.f32 %f3, %f1, %f2;"
        "st.global.f32 [%rd5], %f3;"
    )
);

/// Adds a number to each of the first `n` elements, in place.
pub const BUMP: &str = concat!(
    ".visible .entry bump(.param .u64 data, .param .u32 n, .param .f32 by)\n",
    each!(
        "ld.param.u64 %rd2, [data];"
        "ld.param.f32 %f1, [by];";
        "add.s64 %rd3, %rd2, %rd1;"
        "ld.global.f32 %f2, [%rd3];"
        "add.f32 %f3, %f1, %f2;"
        "st.global.f32 [%rd3], %f3;"
    )
);

/// Parameters of every width, stored one behind the other as 64-bit numbers.
pub const WIDTHS: &str = "
.visible .entry widths(.param .u64 out, .param .u8 a, .param .u16 b, .param .u32 c, .param .u64 d,
    .param .align 8 .b8 e[24])
{
    .reg .b16 %h<3>;
    .reg .b32 %r<2>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [out];
    ld.param.u8 %h1, [a];
    ld.param.u16 %h2, [b];
    ld.param.u32 %r1, [c];
    ld.param.u64 %rd2, [d];
    ld.param.u64 %rd3, [e+16];
    cvt.u64.u16 %rd4, %h1;
    cvt.u64.u16 %rd5, %h2;
    cvt.u64.u32 %rd6, %r1;
    st.global.u64 [%rd1], %rd4;
    st.global.u64 [%rd1+8], %rd5;
    st.global.u64 [%rd1+16], %rd6;
    st.global.u64 [%rd1+24], %rd2;
    st.global.u64 [%rd1+32], %rd3;
    ret;
}
";

/// Reverses a block's elements through dynamic shared memory.
pub const REVERSE: &str = "
.extern .shared .align 16 .b8 smem[];
.visible .entry reverse(.param .u64 data)
{
    .reg .b32 %r<10>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [data];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r8, smem;
    shl.b32 %r3, %r1, 2;
    add.u32 %r9, %r8, %r3;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r4, [%rd3];
    st.shared.u32 [%r9], %r4;
    bar.sync 0;
    sub.u32 %r5, %r2, %r1;
    sub.u32 %r5, %r5, 1;
    shl.b32 %r6, %r5, 2;
    add.u32 %r9, %r8, %r6;
    ld.shared.u32 %r7, [%r9];
    st.global.u32 [%rd3], %r7;
    ret;
}
";

/// Variables with initial values, and a kernel that copies one to the other.
pub const GLOBALS: &str = "
.visible .const .align 4 .f32 table[4] = {0f3F800000, 0f40000000, 0f40400000, 0f40800000};
.visible .global .align 4 .f32 copy[4];
.visible .global .align 8 .u64 where[2] = {copy, generic(table)+8};
.visible .entry spread()
{
    .reg .b32 %r1;
    .reg .f32 %f1;
    .reg .b64 %rd<6>;
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd1, %r1, 4;
    mov.u64 %rd2, table;
    mov.u64 %rd3, copy;
    add.s64 %rd4, %rd2, %rd1;
    add.s64 %rd5, %rd3, %rd1;
    ld.const.f32 %f1, [%rd4];
    st.global.f32 [%rd5], %f1;
    ret;
}
";

/// Writes each block's rank in its cluster.
pub const RANKS: &str = "
.visible .entry ranks(.param .u64 out)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %cluster_ctarank;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r2;
    ret;
}
";

/// Says in one word that it is there and waits until another word says the same.
pub const MEET: &str = "
.visible .entry meet(.param .u64 mine, .param .u64 theirs)
{
    .reg .pred %p;
    .reg .b32 %r;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [mine];
    ld.param.u64 %rd2, [theirs];
    mov.u32 %r, 1;
    st.global.u32 [%rd1], %r;
LOOP:
    ld.global.u32 %r, [%rd2];
    setp.eq.u32 %p, %r, 0;
    @%p bra LOOP;
    ret;
}
";

/// A module of some kernels.
pub fn module(parts: &[&str]) -> String {
    format!(".version 8.0\n.target sm_80\n.address_size 64\n{}", parts.concat())
}

/// The same for Hopper.
pub fn hopper(parts: &[&str]) -> String {
    format!(".version 8.0\n.target sm_90\n.address_size 64\n{}", parts.concat())
}
