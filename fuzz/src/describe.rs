//! Any text as a description.

use iovirt::describe::{Chain, Description};
use iovirt::registry::Registry;

/// Parses, prints, parses again, and checks.
///
/// # Panics
/// Where what was printed does not parse to the same.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let registry = Registry::standard();
    if let Ok(chain) = text.parse::<Chain>() {
        assert_eq!(chain.to_string().parse(), Ok(chain));
    }
    match text.parse::<Description>() {
        Ok(description) => {
            let printed = description.to_string();
            assert_eq!(printed.parse(), Ok(description.clone()), "{printed}");
            match registry.check(&description) {
                Ok(()) => assert!(registry.parse(text).is_ok()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Descriptions as in the documentation.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "virtio-blk,queues=2 -> stats -> memory,size=1G",
        "virtio-blk -> mirror,write-quorum=2 [file,path=a.img | stats -> file,path=b.img]",
        r#"virtio-blk,serial="a b\u{41}\n" -> null,size=64K"#,
        "virtio-blk -> stats,name=top -> file,path=\"my disk.img\",cache=write-back,direct=on",
        "virtio-blk->[",
        "stats -> a=b",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
