//! What all kernels need to know about vectors.

use pulp::{Arch, Simd, WithSimd};

/// Returns the f32 values of one vector of this processor.
pub fn lanes(arch: Arch) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    arch.dispatch(Lanes)
}

/// Returns the name of the instruction set that the kernels use here.
pub fn instruction_set(arch: Arch) -> &'static str {
    match (lanes(arch), cfg!(target_arch = "x86_64")) {
        (16, _) => "AVX512",
        (8, _) => "AVX2",
        (4, false) => "NEON",
        _ => "scalar",
    }
}
