//! The wire contract of Plurality, generated from `proto/ensemble/v1`.
//!
//! Nothing is written by hand here: the `.proto` files are the only place where the contract is stated.

/// Package `ensemble.v1`.
pub mod v1 {
    #![expect(clippy::all, missing_docs, reason = "generated; the .proto files carry the docs")]
    tonic::include_proto!("ensemble.v1");
}

/// The encoded `FileDescriptorSet` of the contract, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
