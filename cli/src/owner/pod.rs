//! Pods: what the owner of one does for its members beside starting them, and what it, and those of members, do not do.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::Owner;
use super::execs::Left;
use crate::attend::{Exec, Order, Update};
use crate::control::Control;
use crate::oci::Controls;
use crate::pods::place::vacate;
use guest_protocol::files::Helper;

/// What a microVM is to several containers.
#[derive(Debug, Default)]
pub(super) enum Sharing {
    /// It is one container's.
    #[default]
    None,
    /// This is the pod's owner: it has so many places.
    Pod {
        places: u8,
        /// Readable when the last container has left it.
        empty: OwnedFd,
    },
    /// This is the owner of a container in the pod of that name.
    Member { pod: String },
    /// This is the owner of a container that has no microVM.
    Host(Controls),
}

impl Owner {
    /// The microVM is a pod's, if it has places for containers.
    ///
    /// # Errors
    /// As eventfd(2) and epoll_ctl(2).
    pub fn has_places(&mut self, places: Option<u8>) -> io::Result<()> {
        let Some(places) = places else { return Ok(()) };
        let empty = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&self.any, &empty, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        self.sharing = Sharing::Pod { places, empty };
        Ok(())
    }

    /// The container has no microVM of its own: it is in a pod.
    pub fn is_in_pod(&mut self, pod: &str) {
        self.sharing = Sharing::Member { pod: pod.to_owned() };
    }

    /// The container has no microVM at all.
    pub fn has_runtime(&mut self, controls: Controls) {
        self.sharing = Sharing::Host(controls);
    }

    /// The way to whoever it has in place of a microVM.
    pub(super) fn runtime(&mut self) -> Option<&mut Controls> {
        match &mut self.sharing {
            Sharing::Host(controls) => Some(controls),
            _ => None,
        }
    }

    /// Why an order is not carried out where a microVM is shared, if it is not.
    pub(super) fn refused_for_sharing(&self, order: &Order) -> Option<String> {
        refusal(&self.sharing, &self.facts.name, order)
    }

    /// A member has left its place: away with what is behind its disks, and with the pod, if it was the last one.
    pub(super) fn left(&mut self, left: Left) {
        let control = Control::at(&self.control());
        if let Some(place) = left.place {
            if let Err(error) = vacate(&control, place) {
                tracing::warn!("pod {}: place {place}: {error}", self.facts.name);
                self.execs.keep_from_use(place);
            }
        }
        left.tell();
        if let Sharing::Pod { empty, .. } = &self.sharing
            && self.execs.has_no_members()
        {
            let _ = rustix::io::write(empty, &1_u64.to_ne_bytes());
        }
    }

    /// Whether the last container has left a pod, and none has come since.
    pub(super) fn is_empty(&self) -> bool {
        let Sharing::Pod { empty, .. } = &self.sharing else { return false };
        rustix::io::read(empty, &mut [0; 8]).is_ok() && self.execs.has_no_members()
    }
}

fn refusal(sharing: &Sharing, name: &str, order: &Order) -> Option<String> {
    let in_pod = |pod: &str, why: &str| Some(format!("container {name} is in pod {pod}{why}"));
    match (sharing, order) {
        (Sharing::Pod { places, .. }, Order::Exec(Exec { helper: Some(Helper::Member { place }), .. })) => {
            (place >= places).then(|| format!("pod {name} has {places} places"))
        }
        (Sharing::Pod { .. }, Order::About {} | Order::End {} | Order::Signal { .. }) => None,
        (Sharing::Pod { .. }, _) => Some(format!("'{name}' is a pod; `bulkhead pod inspect` tells its containers")),
        (_, Order::Exec(Exec { helper: Some(Helper::Member { .. } | Helper::Wait), .. })) => {
            Some(format!("'{name}' is no pod"))
        }
        (Sharing::Member { pod }, Order::Snapshot { .. } | Order::Rollback { .. }) => in_pod(
            pod,
            ": its memory is a part of the pod's, and not kept by itself; `bulkhead commit` keeps its files",
        ),
        (Sharing::Member { pod }, Order::Pause {} | Order::Unpause {}) => {
            in_pod(pod, ", whose processors are everybody's: it does not stand still by itself")
        }
        (Sharing::Member { pod }, Order::Update(to))
            if *to != (Update { restart: to.restart, ..Update::default() }) =>
        {
            in_pod(pod, ": its limits are what it was made with")
        }
        (Sharing::Host(_), Order::Snapshot { .. } | Order::Rollback { .. }) => Some(format!(
            "container {name} has no microVM (--isolation container), whose memory could be kept; `bulkhead commit` keeps its files"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Keeper;
    use crate::restart::Policy;
    use bench::compare::bundle::Runtime;

    #[test]
    fn what_is_shared_is_nobodys_alone() {
        let empty = eventfd(0, EventfdFlags::empty()).unwrap();
        let pod = Sharing::Pod { places: 2, empty };
        let member = Sharing::Member { pod: "web".into() };
        let runtime = Runtime { program: "runc".into(), state: "/s".into() };
        let host = Sharing::Host(Controls { runtime, id: "c".into(), rates: Keeper::default() });
        let exec = |helper| Order::Exec(Exec { helper, args: vec!["sh".into()], ..Exec::default() });
        let place = |place| exec(Some(Helper::Member { place }));
        let update = |memory_mib| Order::Update(Update { memory_mib, restart: Some(Policy::No), ..Update::default() });
        for (sharing, order, wanted) in [
            (&pod, place(1), None),
            (&pod, place(2), Some("has 2 places")),
            (&pod, exec(None), Some("is a pod")),
            (&pod, Order::Pause {}, Some("is a pod")),
            (&pod, Order::End {}, None),
            (&member, place(0), Some("is no pod")),
            (&member, exec(Some(Helper::Wait)), Some("is no pod")),
            (&member, exec(None), None),
            (&member, exec(Some(Helper::Usage)), None),
            (&member, Order::Pause {}, Some("in pod web")),
            (&member, Order::Snapshot { name: None }, Some("in pod web")),
            (&member, update(None), None),
            (&member, update(Some(64)), Some("in pod web")),
            (&Sharing::None, place(0), Some("is no pod")),
            (&Sharing::None, Order::Pause {}, None),
            (&host, Order::Pause {}, None),
            (&host, exec(None), None),
            (&host, Order::Snapshot { name: None }, Some("no microVM")),
            (&host, Order::Rollback { to: "x".into() }, Some("no microVM")),
        ] {
            let refused = refusal(sharing, "c", &order);
            assert_eq!(refused.is_some(), wanted.is_some(), "{order:?}: {refused:?}");
            assert!(refused.unwrap_or_default().contains(wanted.unwrap_or_default()), "{order:?}");
        }
    }
}
