//! `bulkhead update`: what can be changed of a container that there is, whether it runs or not.

use anyhow::{Context, anyhow};

use super::containers::each;
use super::inspect::find;
use crate::args::{Isolation, Update};
use crate::attend::client::ask;
use crate::attend::{self, Order};
use crate::containers::{Containers, Status};
use crate::failure::Outcome;
use crate::life;
use crate::oci;
use crate::paths;
use crate::restart::Policy;
use crate::running;

/// Changes them.
pub fn update(args: &Update) -> Outcome {
    let to = attend::Update { restart: args.restart, cpus: args.cpus, memory_mib: args.memory, rates: args.rates };
    if to == attend::Update::default() {
        return Err(anyhow!(
            "nothing to change: say --restart, --cpus, --memory or a rate; see 'bulkhead update --help'"
        )
        .into());
    }
    each(&args.containers, |word| change(word, to).map(|()| word.to_owned()))
}

fn change(word: &str, to: attend::Update) -> anyhow::Result<()> {
    let entry = find(word)?;
    let state = &entry.record.state;
    if entry.record.flags.rm && to.restart.is_some_and(|restart| restart != Policy::No) {
        return Err(anyhow!("cannot update container {word}: it was made with --rm, and goes with its end"));
    }
    if state.restarting {
        return Err(anyhow!(
            "cannot update container {word}: it waits to be started again; try again when it runs, or `bulkhead stop {word}`"
        ));
    }
    if state.status == Status::Running {
        // Whoever has it keeps its record.
        ask(&running::directory(&entry), &entry.name, &Order::Update(to), &mut |_| ())?;
        return Ok(());
    }
    let (held, mut record) = Containers::of(&paths::store())?.visit(&entry.record.id)?;
    to.apply(&mut record.flags);
    // It would not start.
    let resized = to.cpus.is_some() || to.memory_mib.is_some();
    let contained = record.flags.isolation == Isolation::Container;
    let sound = match resized {
        _ if contained => oci::check(&record.flags),
        true => life::check_size(&record.flags),
        false => Ok(()),
    };
    let sound = sound.and_then(|()| record.flags.rates.check(record.flags.has_network()));
    let written = sound.and_then(|()| Ok(record.write(&held.dir(), true)?));
    written.with_context(|| format!("cannot update container {word}"))
}
