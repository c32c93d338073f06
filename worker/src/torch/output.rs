//! The two files of a finished training.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use plurality_common::{
    predictions::Predictions,
    trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TrainerSpec},
    weights::{Metadata, Weights},
};
use plurality_failpoints::{self as failpoints, Point};

use super::error::TrainError;

/// Writes checkpoint and predictions into the specification's folder; when this returns they are on the disk.
pub fn write(spec: &TrainerSpec, weights: &Weights, predictions: &Predictions) -> Result<(), TrainError> {
    let metadata = Metadata::new(spec.recipe.clone(), spec.run_seed, spec.member).to_json();
    let files =
        [(CHECKPOINT_FILE, weights.to_safetensors(&metadata)), (PREDICTIONS_FILE, predictions.to_safetensors())];
    for (name, bytes) in files {
        write_synced(&spec.out, name, &bytes).map_err(|source| TrainError::Output { name, source })?;
    }
    Ok(())
}

/// Writes beside, syncs, renames, syncs the folder.
pub fn write_synced(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let is_called = |beginning: &str| name.starts_with(beginning);
    let unfinished = folder.join(format!("{name}.unfinished"));
    let mut file = File::create(&unfinished)?;
    failpoints::pass_if(Point::OutputBegun, is_called);
    file.write_all(bytes)?;
    file.sync_all()?;
    failpoints::pass_if(Point::OutputWritten, is_called);
    fs::rename(&unfinished, folder.join(name))?;
    failpoints::pass_if(Point::OutputNamed, is_called);
    File::open(folder)?.sync_all()
}
