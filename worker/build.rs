//! Gives `worker-trainer` the places where the loader finds LibTorch; `worker` must not link it.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    // `torch-sys` declares `links = "tch"` and says which folder it linked against.
    if let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg-bin=worker-trainer=-Wl,-rpath,{}", folder.display());
        link_cuda(Path::new(&folder));
    }
    // A package puts LibTorch beside the binary or into `../lib`.
    println!("cargo:rustc-link-arg-bin=worker-trainer=-Wl,-rpath,$ORIGIN/../lib,-rpath,$ORIGIN");
}

/// Keeps LibTorch's CUDA libraries, where it has them: they register themselves when they are loaded, nothing calls them
/// by name, and the linker drops a library that nothing calls. `tch` does the same for its own programs only.
///
/// Checked with libraries of these names that do nothing; not tried on a GPU.
fn link_cuda(folder: &Path) {
    if !folder.join("libtorch_cuda.so").exists() {
        return;
    }
    for argument in ["-Wl,--push-state,--no-as-needed", "-ltorch_cuda", "-lc10_cuda", "-Wl,--pop-state"] {
        println!("cargo:rustc-link-arg-bin=worker-trainer={argument}");
    }
}
