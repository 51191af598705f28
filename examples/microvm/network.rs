//! Network cards by a short option.

use iovirt::describe::Description;
use iovirt::registry::Registry;

use crate::Failure;
use crate::devices::Place;

/// What `--tap NAME` is short for, but for the name.
const PIPELINE: &str = "virtio-net -> stats -> tap,name=tap0";

/// A network card on a tap of the host.
pub(crate) fn on_tap(registry: &Registry, name: &str) -> Result<(Place, Description), Failure> {
    let mut description = registry
        .parse(PIPELINE)
        .map_err(|error| Failure::Description { text: PIPELINE.to_owned(), error })?;
    // Not by text, in which a name could hold anything.
    let stage = &mut description.below.backend.stage;
    *stage = stage.clone().with("name", name);
    Ok((Place::Mmio, description))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_name() {
        let (_, description) = on_tap(&Registry::standard(), "a,queues=2").unwrap();
        let text = description.to_string();
        let again = Registry::standard().parse(&text).unwrap();
        assert_eq!(again, description, "{text}");
        assert_eq!(description.below.backend.stage.get("name"), Some("a,queues=2"));
        assert_eq!(description.below.backend.stage.get("queues"), None);
    }
}
