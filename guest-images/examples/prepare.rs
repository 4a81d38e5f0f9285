//! Prepares an image as `run` does, and prints its layers and the time it took: `prepare STORE IMAGE`.

use guest_images::{ImageRef, Progress, Store};
use std::error::Error;
use std::time::Instant;

struct Show;

impl Progress for Show {
    fn layer(&mut self, index: usize, count: usize, cached: bool) {
        eprintln!("layer {}/{count}{}", index + 1, if cached { ", cached" } else { "" });
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(store), Some(image)) = (args.next(), args.next()) else {
        return Err("usage: prepare STORE IMAGE".into());
    };
    let start = Instant::now();
    let store = Store::open(store)?;
    let image = store.prepare(&image.parse::<ImageRef>()?, &mut Show)?;
    let elapsed = start.elapsed();
    for layer in &image.layers {
        println!("{} {} {}", layer.digest, layer.bytes, layer.path.display());
    }
    println!("{} in {:.3} s", image.id, elapsed.as_secs_f64());
    Ok(())
}
