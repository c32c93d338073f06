//! Gives `worker-trainer` the places where the loader finds LibTorch; `worker` must not link it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    // `torch-sys` declares `links = "tch"` and says which folder it linked against.
    if let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg-bin=worker-trainer=-Wl,-rpath,{}", folder.display());
        // Where it looks for CUDA's part too. That part is loaded at run time and never linked: on a CPU it would be a
        // gigabyte of libraries for nothing.
        println!("cargo:rustc-env=PLURALITY_LIBTORCH_LIB={}", folder.display());
    }
    // A package puts LibTorch beside the binary or into `../lib`.
    println!("cargo:rustc-link-arg-bin=worker-trainer=-Wl,-rpath,$ORIGIN/../lib,-rpath,$ORIGIN");
}
