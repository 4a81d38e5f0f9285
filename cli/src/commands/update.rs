//! `bulkhead update`: what can be changed of a container that there is, whether it runs or not.

use anyhow::anyhow;

use super::containers::{each, record_word};
use super::inspect::find;
use crate::args::Update;
use crate::attend::Order;
use crate::attend::client::ask;
use crate::containers::{Containers, Status};
use crate::failure::Outcome;
use crate::paths;
use crate::restart::Policy;
use crate::running;

/// Changes them.
pub fn update(args: &Update) -> Outcome {
    each(&args.containers, |word| change(word, args.restart).map(|()| word.to_owned()))
}

fn change(word: &str, restart: Policy) -> anyhow::Result<()> {
    let entry = find(word)?;
    let state = &entry.record.state;
    if entry.record.flags.rm && restart != Policy::No {
        return Err(anyhow!("cannot update container {word}: it was made with --rm, and goes with its end"));
    }
    if state.restarting {
        return Err(anyhow!(
            "cannot update container {word}: it waits to be started again; try again when it runs, or `bulkhead stop {word}`"
        ));
    }
    if state.status == Status::Running {
        // Whoever has it keeps its record.
        let order = Order::Update { restart };
        ask(&running::directory(&entry), &entry.name, &order, &mut |_| ())?;
        return Ok(());
    }
    let (_, held, mut record) = Containers::of(&paths::store())?.take(record_word(&entry))?;
    record.flags.restart = restart;
    record.write(&held.dir(), true)?;
    held.stays();
    Ok(())
}
