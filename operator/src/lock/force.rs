//! Taking a lock from its holder by force, asked for by an annotation that names the fence: so it cannot hit whoever
//! holds it later.

use concordat_crds::names::FORCE_RELEASE_ANNOTATION;
use concordat_protocol::{Plan, lock::fence::PLACES};
use kube::ResourceExt;

use super::State;
use crate::kind::Asked;

/// Reason of the Event that tells that it was done.
const DONE: &str = "ForceReleased";
/// Reason of the Event that tells that it was not.
const REFUSED: &str = "ForceReleaseRefused";

/// What the annotation `<key>=<fence>` asks for.
pub(super) fn asked(object: &concordat_crds::Lock, state: &State) -> Option<Asked> {
    let text = object.annotations().get(FORCE_RELEASE_ANNOTATION)?;
    Some(Asked { annotation: FORCE_RELEASE_ANNOTATION, plan: plan(text, state), refused: REFUSED })
}

fn plan(text: &str, state: &State) -> Result<(Plan, &'static str, String), String> {
    // A key may hold an =, a fence may not.
    let parts = text.rsplit_once('=').and_then(|(key, fence)| Some((key, fence.parse::<u64>().ok()?)));
    let Some((key, fence)) = parts else {
        return Err(format!("{text:?} is not of the form <key>=<fence>: status.holders shows both"));
    };
    let mut of_key = state.holders.iter().filter(|held| held.key == key).peekable();
    if of_key.peek().is_none() {
        return Err(format!("nobody holds {key:?}: nothing was released"));
    }
    // Of what may only stay with a sidecar, etcd does not tell how often it was granted.
    let is_it = |held: &&super::Held| {
        held.fence == fence || held.holder.stays && held.fence / PLACES == fence / PLACES
    };
    let Some(held) = of_key.find(is_it) else {
        return Err(format!("{key:?} is not held with fence {fence} any more: nothing was released"));
    };
    let note = format!(
        "{key:?} was taken from pod {:?}, owner {:?}, fence {fence}; until its sidecar has told it, and wherever \
         fences are not compared, it may still write",
        held.holder.pod, held.holder.owner
    );
    Ok((Plan::new().unchanged(held.at.clone(), held.revision).delete(held.at.clone()), DONE, note))
}

#[cfg(test)]
mod tests {
    use concordat_protocol::{Key, lock::Holder};

    use super::{super::Held, *};

    fn state() -> State {
        let held = |key: &str, fence| Held {
            at: Key::Holder { lock: "orders".into(), key: key.into() },
            key: key.into(),
            holder: Holder {
                session: "s".into(),
                pod: "pod".into(),
                owner: "o".into(),
                since: 1,
                regrants: 0,
                stays: false,
            },
            fence,
            revision: (fence / PLACES) as i64,
        };
        State { holders: vec![held("a=b", 7 << 10), held("c", 9 << 10)], ..State::default() }
    }

    #[test]
    fn the_holder_with_this_fence_is_deleted_by_compare() {
        let (plan, reason, _) = plan("a=b=7168", &state()).unwrap();
        let at = Key::Holder { lock: "orders".into(), key: "a=b".into() };
        assert_eq!(plan, Plan::new().unchanged(at.clone(), 7).delete(at));
        assert_eq!(reason, "ForceReleased");
    }

    #[test]
    fn nobody_else_is_hit() {
        for (text, why) in [
            ("c=9217", "\"c\" is not held with fence 9217 any more: nothing was released"),
            ("d=9216", "nobody holds \"d\": nothing was released"),
            ("c", "\"c\" is not of the form <key>=<fence>: status.holders shows both"),
            ("c=x", "\"c=x\" is not of the form <key>=<fence>: status.holders shows both"),
            ("c=-1", "\"c=-1\" is not of the form <key>=<fence>: status.holders shows both"),
        ] {
            assert_eq!(plan(text, &state()).unwrap_err(), why);
        }
    }
}
